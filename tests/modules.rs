//! The modules of NixOS and nix-darwin, evaluated by the real Nix; the program itself says whether they agree with it.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the support")]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harmonia::config::{Bind, Config};
use serde_json::Value;
use support::{Scratch, fail, lossy, succeed, write};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/nix");

fn nix(scratch: &Scratch, expression: &str) -> Command {
    let mut command = Command::new("nix-instantiate");
    command.args(["--eval", "--strict", "--json", "--expr"]).arg(expression);
    command.env("HOME", scratch.path()).env("NIX_STATE_DIR", scratch.path().join("state"));
    command.env("NIX_REMOTE", "dummy://").env("NIX_CONFIG", "restrict-eval = false");
    command
}

/// What a part of an evaluated module comes to: `defaults`, `config` …
fn evaluate(module: &str, set: &str, part: &str) -> Value {
    evaluate_among("{ }", module, set, part)
}

/// The same, among modules that declare the options `others`.
fn evaluate_among(others: &str, module: &str, set: &str, part: &str) -> Value {
    let scratch = Scratch::new();
    let expression = format!(
        "((import {FOLDER}/tests/stand-in.nix).evaluateAmong {others} {FOLDER}/{module} {set}).{part}"
    );
    let json = succeed(&mut nix(&scratch, &expression));
    serde_json::from_slice(&json).expect("Nix writes JSON")
}

/// Makes a settings file of what the stand-in gives for one, and has the program read it.
fn read_settings(json: &str, variables: &[(&str, &str)]) -> Config {
    let settings: serde_json::Map<String, Value> = serde_json::from_str(json).expect("a set");
    // One line a key: JSON's values, but for sets, are TOML's.
    let text: String = settings.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    let scratch = Scratch::new();
    let file = scratch.path().join("harmonia.toml");
    write(&file, text);
    let variable =
        |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    Config::load(Some(&file), &variable).expect("the program takes what the module writes")
}

fn assertions_fail(module: &str, set: &str) -> String {
    let assertions = evaluate(module, set, "config.assertions");
    let failed = assertions.as_array().expect("a list").iter().filter(|one| one["assertion"] == false);
    failed.map(|one| one["message"].as_str().expect("a text").to_owned()).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_defaults_of_the_options_are_the_programs() {
    let program = read_settings("{}", &[]);
    for (module, bind) in [("nixos.nix", "[::]:5000"), ("darwin.nix", "0.0.0.0:5000")] {
        let defaults = &evaluate(module, "{ }", "defaults")["services"]["harmonia"];
        assert_eq!(defaults["workers"], program.workers.get());
        assert_eq!(defaults["priority"], program.priority);
        assert_eq!(defaults["maxConnectionRate"], program.connections_per_worker.get());
        assert_eq!(defaults["enableCompression"], false);
        assert_eq!((&defaults["keepServed"], program.keep_served), (&Value::Null, None));
        assert_eq!(defaults["enable"], false);
        assert_eq!(defaults["bind"], bind);
    }
    assert_eq!(program.bind, [Bind::Tcp { host: "::".to_owned(), port: 5000 }], "what NixOS has as well");
}

#[test]
fn nixos_runs_a_hardened_notifying_socket_unit_with_keys_as_credentials() {
    let set = "{ services.harmonia = { enable = true; signKeyPath = \"/run/keys/a\"; signKeyPaths = [ \"/run/keys/b\" ]; \
               bind = [ \"[::1]:5001\" \"unix:/run/harmonia.sock\" ]; settings.cache_max_size = \"100G\"; \
               keepServed = \"4w\"; }; }";
    let config = evaluate("nixos.nix", set, "config");
    let unit = &config["systemd"]["services"]["harmonia"];
    let service = &unit["serviceConfig"];
    assert_eq!(service["Type"], "notify-reload");
    assert_eq!(
        service["LoadCredential"],
        serde_json::json!(["sign-key-0:/run/keys/a", "sign-key-1:/run/keys/b"])
    );
    assert_eq!(service["CacheDirectory"], "harmonia");
    let socket = &config["systemd"]["sockets"]["harmonia"];
    assert_eq!(socket["listenStreams"], serde_json::json!(["[::1]:5001", "/run/harmonia.sock"]));

    // As systemd would expand it.
    let keys =
        unit["environment"]["SIGN_KEY_PATHS"].as_str().expect("a text").replace("%d", "/run/credentials/h");
    let file = unit["environment"]["CONFIG_FILE"].as_str().expect("a text");
    let read = read_settings(file, &[("SIGN_KEY_PATHS", &keys), ("CACHE_DIRECTORY", "/var/cache/harmonia")]);
    let expected: Vec<PathBuf> =
        ["0", "1"].map(|number| format!("/run/credentials/h/sign-key-{number}").into()).into();
    assert_eq!(read.sign_key_paths, expected);
    let cache = read.cache.expect("a cache is kept");
    assert_eq!((cache.dir.as_path(), cache.max_size), (Path::new("/var/cache/harmonia"), 100 << 30));
    assert_eq!(read.bind.len(), 2);
    assert_eq!(read.keep_served, Some(Duration::from_secs(28 * 24 * 3600)));
    // The folder of roots is there for the service's user, who may write nowhere else.
    let roots = read.roots_dir.to_str().expect("a text");
    let rule = format!("d {roots} 0755 harmonia harmonia -");
    assert_eq!(config["systemd"]["tmpfiles"]["rules"], serde_json::json!([rule]));
    assert_eq!(config["boot"]["kernelModules"], serde_json::json!([]), "only TLS wants one");
    assert_eq!(service["ReadWritePaths"], format!("-{roots}"));
    // Where the daemon is not for everybody, it is for this user, which asks it for roots.
    assert_eq!(config["nix"]["settings"]["extra-allowed-users"], serde_json::json!(["harmonia"]));
}

/// systemd passes over a `ListenStream=` that names a host, and the server would get no socket at all.
#[test]
fn nixos_refuses_to_listen_at_a_name() {
    let said = |bind: &str| {
        let set = format!("{{ services.harmonia = {{ enable = true; signKeyPath = \"/k\"; {bind} }}; }}");
        assertions_fail("nixos.nix", &set)
    };
    for bind in ["bind = \"localhost:5000\";", "settings.bind = [ \"[::1]:1\" \"cache.example:5000\" ];"] {
        assert!(said(bind).contains("bind names a host"), "{bind}");
    }
    for bind in ["127.0.0.1:5000", "[::]:5000", "[fe80::1%eth0]:80", "unix:/run/h", "unix:///run/h"] {
        assert_eq!(said(&format!("bind = \"{bind}\";")), "");
    }
}

#[test]
fn systemd_understands_the_unit() {
    let set = "{ services.harmonia = { enable = true; signKeyPath = \"/run/keys/a\"; }; }";
    let config = evaluate("nixos.nix", set, "config");
    let scratch = Scratch::new();
    let unit = &config["systemd"]["services"]["harmonia"];
    let mut text = "[Service]\n".to_owned();
    for (key, value) in unit["serviceConfig"].as_object().expect("a set") {
        let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        for value in values {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text.push_str(&format!("{key}={value}\n"));
        }
    }
    // The user and the program are not on this machine, and an older systemd does not know the type.
    let text = text
        .replace("User=harmonia\n", "")
        .replace("Group=harmonia\n", "")
        .replace("/package/bin/harmonia", "/bin/true")
        .replace("notify-reload", "notify");
    let file = scratch.path().join("harmonia.service");
    let about = |text: &str| -> Vec<String> {
        write(&file, text);
        let output = support::run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file));
        let said = lossy(&output.stderr);
        said.lines().filter(|line| line.contains("harmonia.service")).map(str::to_owned).collect()
    };
    assert_eq!(about(&text), Vec::<String>::new());
    let told = about(&format!("{text}NoSuchKey=1\n"));
    assert!(told.iter().any(|line| line.contains("NoSuchKey")), "the witness can fail: {told:?}");
}

#[test]
fn the_names_of_nixpkgs_module_are_taken() {
    let set = "{ services.harmonia.cache = { enable = true; signKeyPaths = [ \"/k\" ]; settings.priority = 50; }; }";
    let config = evaluate("nixos.nix", set, "config");
    let unit = &config["systemd"]["services"]["harmonia"];
    assert_eq!(unit["serviceConfig"]["LoadCredential"], serde_json::json!(["sign-key-0:/k"]));
    let file = unit["environment"]["CONFIG_FILE"].as_str().expect("a text");
    assert_eq!(read_settings(file, &[]).priority, 50);
    let disabled = evaluate("nixos.nix", "{ }", "disabled");
    assert_eq!(disabled, serde_json::json!(["services/networking/harmonia.nix"]));
}

#[test]
fn launchd_gets_label_logs_descriptors_and_settings() {
    let set =
        "{ services.harmonia = { enable = true; signKeyPath = \"/etc/harmonia.secret\"; workers = 8; }; }";
    let config = evaluate("darwin.nix", set, "config");
    let daemon = &config["launchd"]["daemons"]["harmonia"]["serviceConfig"];
    assert_eq!(daemon["Label"], "org.nixos.harmonia");
    assert_eq!(daemon["StandardOutPath"], "/var/log/harmonia.log");
    assert_eq!(daemon["StandardErrorPath"], "/var/log/harmonia.error.log");
    for limit in ["SoftResourceLimits", "HardResourceLimits"] {
        assert_eq!(daemon[limit]["NumberOfFiles"], 65536);
    }
    let arguments: Vec<&str> =
        daemon["ProgramArguments"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    // The store may be mounted after launchd begins: a job whose program is missing then is not tried again.
    let [shell, option, script, program, command, config, settings] = arguments[..] else {
        panic!("{arguments:?}")
    };
    assert_eq!([shell, option, program], ["/bin/sh", "-c", "/package/bin/harmonia"]);
    assert_eq!([command, config], ["serve", "--config"]);
    let waiting = script.strip_prefix("/bin/wait4path /nix/store;").expect("it waits first");
    let mut shell = Command::new(shell);
    let said = succeed(shell.args([option, waiting, "echo", command, config, settings]));
    assert_eq!(lossy(&said).trim_end(), format!("serve --config {settings}"), "then it is the program");
    let read = read_settings(settings, &[]);
    assert_eq!(read.workers.get(), 8);
    assert_eq!(read.sign_key_paths, [Path::new("/etc/harmonia.secret")]);
    assert_eq!(read.bind, [Bind::Tcp { host: "0.0.0.0".to_owned(), port: 5000 }]);
}

#[test]
fn a_server_without_a_key_or_with_one_that_all_may_read_is_refused() {
    for module in ["nixos.nix", "darwin.nix"] {
        let said = assertions_fail(module, "{ services.harmonia.enable = true; }");
        assert!(said.contains("set signKeyPaths"), "{said}");
        let set = "{ services.harmonia = { enable = true; signKeyPath = builtins.storeDir + \"/x-key\"; }; }";
        let said = assertions_fail(module, set);
        assert!(said.contains("lies in the Nix store"), "{said}");
        let set = "{ services.harmonia = { enable = true; signKeyPath = \"/k\"; }; }";
        assert_eq!(assertions_fail(module, set), "");
        let config = evaluate(module, set, "config");
        let environment = &config["environment"];
        assert_eq!(
            environment["systemPackages"],
            serde_json::json!(["/package"]),
            "the commands that the pages name are at hand"
        );
        let for_commands = &environment["etc"]["harmonia/settings.toml"]["source"];
        let for_server = match module {
            "nixos.nix" => &config["systemd"]["services"]["harmonia"]["environment"]["CONFIG_FILE"],
            _ => &config["launchd"]["daemons"]["harmonia"]["serviceConfig"]["ProgramArguments"][6],
        };
        assert!(for_server.is_string() && for_commands == for_server, "{for_commands} and {for_server}");
        assert_eq!(
            evaluate(module, "{ }", "config"),
            serde_json::json!({}),
            "nothing where it is not enabled"
        );
    }
}

#[test]
fn clients_of_every_platform_get_the_same_keys_from_one_place() {
    let caches = "caches = { office = { url = \"http://a:5000\"; publicKeys = [ \"a-1:x\" \"a-2:y\" ]; }; \
                  lab = { url = \"http://b:5000\"; publicKeys = [ \"a-2:y\" ]; }; };";
    let set = format!("{{ services.harmonia-client = {{ {caches} }}; }}");
    let settings = serde_json::json!({
        "substituters": ["http://b:5000", "http://a:5000"],
        "trusted-public-keys": ["a-2:y", "a-1:x"],
    });
    assert_eq!(evaluate("client-nixos.nix", &set, "config")["nix"]["settings"], settings);
    assert_eq!(evaluate("client-darwin.nix", &set, "config")["nix"]["settings"], settings);
    assert_eq!(assertions_fail("client-darwin.nix", &set), "");

    let set = format!("{{ services.harmonia-client = {{ installer = \"determinate\"; {caches} }}; }}");
    let custom = serde_json::json!({
        "extra-substituters": "http://b:5000 http://a:5000",
        "extra-trusted-public-keys": "a-2:y a-1:x",
    });
    // Determinate's module has had two names for its options.
    for name in ["determinateNix", "determinate-nix"] {
        let config = evaluate_among(&format!("{{ {name} = {{ }}; }}"), "client-darwin.nix", &set, "config");
        assert_eq!(config[name]["customSettings"], custom);
        assert!(config["nix"].get("settings").is_none(), "nix.settings does nothing there");
        assert_eq!(config["assertions"][0]["assertion"], true);
    }
    // What no module declares must not be set, whatever its value.
    assert!(assertions_fail("client-darwin.nix", &set).contains("is not imported"));
    assert_eq!(evaluate("client-darwin.nix", &set, "names"), serde_json::json!(["assertions", "nix"]));
    assert_eq!(evaluate("client-nixos.nix", "{ }", "config"), serde_json::json!({}));
}

#[test]
fn every_file_parses() {
    let scratch = Scratch::new();
    for file in [Path::new(FOLDER).join("package.nix"), Path::new(FOLDER).join("../flake.nix")] {
        let mut parse = Command::new("nix-instantiate");
        succeed(parse.arg("--parse").arg(&file).env("NIX_REMOTE", "dummy://").env("HOME", scratch.path()));
    }
    assert!(fail(&mut nix(&scratch, "1 +")).contains("syntax error"), "the witness can fail");
}

/// The `[Service]` part of Debian's unit and of NixOS's are one, but for what differs between the two systems.
#[test]
fn debians_unit_is_as_hardened_as_that_of_nixos() {
    let set = "{ services.harmonia = { enable = true; signKeyPath = \"/run/keys/a\"; }; }";
    let config = evaluate("nixos.nix", set, "config");
    let service = config["systemd"]["services"]["harmonia"]["serviceConfig"].as_object().expect("a set");
    let mut expected: Vec<(String, String)> = Vec::new();
    for (key, value) in service {
        let lines = match value {
            // Each its own line, but for a list of words.
            Value::Array(values) if key == "RestrictAddressFamilies" => {
                vec![values.iter().map(|value| value.as_str().expect("a word")).collect::<Vec<_>>().join(" ")]
            }
            Value::Array(values) => {
                values.iter().map(|value| value.as_str().expect("a text").to_owned()).collect()
            }
            Value::String(text) => vec![text.clone()],
            value => vec![value.to_string()],
        };
        expected.extend(lines.into_iter().map(|line| (key.clone(), line)));
    }
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/debian/harmonia.service");
    let unit = std::fs::read_to_string(unit).expect("it is there");
    let (_, part) = unit.split_once("[Service]\n").expect("it has that part");
    let (part, _) = part.split_once("\n[").expect("another follows");
    let lines = part.lines().filter_map(|line| line.split_once('='));
    let mut found: Vec<(String, String)> =
        lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    // Keys come as credentials there and from the settings here; a reload is systemd's own there, from 253 on.
    let differs = ["Type", "ExecStart", "ExecReload", "Environment", "LoadCredential"];
    for side in [&mut expected, &mut found] {
        side.retain(|(key, _)| !differs.contains(&key.as_str()));
        side.sort();
    }
    assert_eq!(found, expected);
}
