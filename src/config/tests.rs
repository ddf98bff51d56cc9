//! What files, variables and the command line come to.

use std::error::Error;

use super::*;

const FILE: &str = "/etc/harmonia.toml";

fn with_env(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let settings = Settings::read(Path::new(FILE), text)?;
    let env = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    Config::derive(settings, Some(FILE.into()), &env)
}

fn read(text: &str) -> Config {
    with_env(text, &[]).expect("is valid")
}

fn refusal(text: &str) -> String {
    with_env(text, &[]).expect_err("is not valid").to_string()
}

fn tcp(host: &str, port: u16) -> Bind {
    Bind::Tcp { host: host.to_owned(), port }
}

#[test]
fn defaults() {
    let config = read("");
    assert_eq!(config.bind, [tcp("::", 5000)]);
    assert_eq!((config.workers.get(), config.connections_per_worker.get()), (4, 256));
    assert_eq!(config.priority, 30);
    assert_eq!(config.virtual_nix_store, "/nix/store");
    assert_eq!(config.real_nix_store, Path::new("/nix/store"));
    assert_eq!(config.nix_db_path, Path::new("/nix/var/nix/db/db.sqlite"));
    assert_eq!(config.state_dir, Path::new("/nix/var/nix"));
    assert_eq!(config.log_dir, Path::new("/nix/var/log/nix"));
    assert_eq!(config.daemon_socket, Path::new("/nix/var/nix/daemon-socket/socket"));
    assert_eq!(config.roots_dir, Path::new("/nix/var/nix/gcroots/harmonia"));
    assert_eq!(config.keep_served, None);
    assert!(config.sign_key_paths.is_empty());
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    assert!(config.warnings[0].contains("harmonia keys generate"));
}

/// The file that nixpkgs' module writes, and every other key.
#[test]
fn every_key() {
    let config = read(
        r#"
        bind = "0.0.0.0:5000"
        workers = 2
        max_connection_rate = 100
        priority = 50
        enable_compression = false
        virtual_nix_store = "/gnu/store/"
        real_nix_store = "/mnt/gnu/store"
        nix_db_path = "/mnt/state/db/db.sqlite"
        sign_key_paths = ["/run/credentials/harmonia.service/sign-key-1"]
        daemon_socket = "/run/daemon"
        roots_dir = "/mnt/roots"
        keep_served = "30d"
        cache_dir = "/var/cache/nars"
        cache_max_size = "1.5T"
        "#,
    );
    assert_eq!(config.bind, [tcp("0.0.0.0", 5000)]);
    assert_eq!((config.workers.get(), config.connections_per_worker.get()), (2, 100));
    assert_eq!(config.priority, 50);
    assert_eq!(config.virtual_nix_store, "/gnu/store");
    assert_eq!(config.real_nix_store, Path::new("/mnt/gnu/store"));
    assert_eq!(config.nix_db_path, Path::new("/mnt/state/db/db.sqlite"));
    assert_eq!(config.state_dir, Path::new("/mnt/state"));
    assert_eq!(config.log_dir, Path::new("/mnt/log/nix"));
    assert_eq!(config.daemon_socket, Path::new("/run/daemon"));
    assert_eq!(config.roots_dir, Path::new("/mnt/roots"));
    assert_eq!(config.keep_served, Some(Duration::from_secs(30 * 24 * 3600)));
    assert_eq!(config.cache, Some(Cache { dir: "/var/cache/nars".into(), max_size: 3 << 39 }));
    assert_eq!(config.sign_key_paths, [Path::new("/run/credentials/harmonia.service/sign-key-1")]);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn a_moved_store_moves_what_belongs_to_it() {
    let config = read("real_nix_store = '/srv/demo/nix/store'");
    assert_eq!(config.virtual_nix_store, "/nix/store");
    assert_eq!(config.nix_db_path, Path::new("/srv/demo/nix/var/nix/db/db.sqlite"));
    assert_eq!(config.state_dir, Path::new("/srv/demo/nix/var/nix"));
    assert_eq!(config.log_dir, Path::new("/srv/demo/nix/var/log/nix"));
    assert_eq!(config.daemon_socket, Path::new("/srv/demo/nix/var/nix/daemon-socket/socket"));
    // A virtual store alone moves the real one too.
    let config = read("virtual_nix_store = '/gnu/store'");
    assert_eq!(config.nix_db_path, Path::new("/gnu/var/nix/db/db.sqlite"));
    // A database outside any `db` folder is a copy: state stays with the store.
    let config = read("nix_db_path = '/backup/copy.sqlite'");
    assert_eq!(config.state_dir, Path::new("/nix/var/nix"));
}

#[test]
fn requests_are_logged_and_proxies_trusted_only_when_asked() {
    let config = read("");
    assert_eq!(
        (config.request_log, config.trusted_proxies, config.proxy_protocol),
        (None, Vec::new(), false)
    );
    let config = read(
        "request_log = 'json'\nrequest_log_agent = true\nproxy_protocol = true\n\
         trusted_proxies = ['127.0.0.1', '10.0.0.0/8', 'unix']",
    );
    assert_eq!(config.request_log, Some(RequestLog { form: LineForm::Json, agents: true }));
    assert_eq!((config.trusted_proxies.len(), config.trusted_proxies[2]), (3, Trusted::Unix));
    assert!(config.proxy_protocol && config.warnings.len() == 1, "{:?}", config.warnings);
    assert_eq!(read("request_log = 'none'\nrequest_log_agent = true").request_log, None);
    assert!(read("proxy_protocol = true").warnings.iter().any(|told| told.contains("trusted_proxies")));
    let told = refusal("request_log = 'text'\ntrusted_proxies = ['10.0.0.0/8', '10.0.0.1/8']");
    assert!(told.contains("line 2: `trusted_proxies` must be") && told.contains("10.0.0.1/8"), "{told}");
}

#[test]
fn who_may_use_a_unix_socket() {
    let config = read("bind = 'unix:/run/h'\nsocket_mode = '0660'\nsocket_owner = 'harmonia:nginx'");
    assert_eq!(config.socket_mode, Some(0o660));
    let owner = |text: &str| read(&format!("socket_owner = '{text}'")).socket_owner.expect("it is set");
    let named = |user: Option<&str>, group: Option<&str>| Owner {
        user: user.map(str::to_owned),
        group: group.map(str::to_owned),
    };
    assert_eq!(config.socket_owner, Some(named(Some("harmonia"), Some("nginx"))));
    assert_eq!((owner("a"), owner(":g")), (named(Some("a"), None), named(None, Some("g"))));
    assert_eq!(owner("0:100"), named(Some("0"), Some("100")));
    for wrong in ["socket_mode = '0860'", "socket_mode = '1777'", "socket_mode = 660", "socket_mode = 'rw'"] {
        assert!(refusal(wrong).contains("socket_mode"), "{wrong}");
    }
    for wrong in [":", "a:b:c", "a b"] {
        let told = refusal(&format!("socket_owner = '{wrong}'"));
        assert!(told.contains("`socket_owner` must be a text such as \"user:group\""), "{told}");
    }
}

#[test]
fn how_long_what_is_asked_for_is_kept() {
    let keep = |value: &str| read(&format!("keep_served = {value}")).keep_served;
    let days = |days: u64| Some(Duration::from_secs(days * 24 * 3600));
    assert_eq!((keep("'1d'"), keep("'12 w'"), keep("'36500d'")), (days(1), days(84), days(36_500)));
    assert_eq!((keep("0"), keep("'0d'")), (None, None));
    for wrong in ["'30'", "30", "'d'", "'-1d'", "'1.5d'", "'36501d'", "'12h'", "'30 days'", "true"] {
        let told = refusal(&format!("keep_served = {wrong}"));
        assert!(told.contains("line 1: `keep_served` must be") && told.contains("\"30d\""), "{told}");
    }
}

#[test]
fn what_may_be_kept_and_where() {
    let dir = |env: &[(&str, &str)]| with_env("", env).expect("is valid").cache.expect("kept").dir;
    assert_eq!(dir(&[("CACHE_DIRECTORY", "/var/cache/a:/var/cache/b")]), Path::new("/var/cache/a"));
    let of_user = [("XDG_CACHE_HOME", "/u/.c"), ("HOME", "/u")];
    if rustix::process::geteuid().is_root() {
        assert_eq!(dir(&of_user), Path::new("/var/cache/harmonia"));
    } else {
        assert_eq!(dir(&of_user), Path::new("/u/.c/harmonia"));
        assert_eq!(dir(&of_user[1..]), Path::new("/u/.cache/harmonia"));
    }
    assert_eq!(dir(&[]), Path::new("/var/cache/harmonia"));
    assert_eq!(read("cache_max_size = 0").cache, None);
    for (text, size) in [
        ("4096", 4096),
        ("'4096'", 4096),
        ("'10M'", 10 << 20),
        ("'512 MiB'", 512 << 20),
        ("'0.5G'", 1 << 29),
        ("'3KB'", 3 << 10),
    ] {
        let config = read(&format!("cache_max_size = {text}"));
        assert_eq!(config.cache.map(|cache| cache.max_size), Some(size), "{text}");
    }
    for wrong in ["-1", "''", "'G'", "'-1G'", "'1.G'", "'1E'", "'1.5.5G'", "'99999999T'", "true", "1.5"] {
        let message = refusal(&format!("cache_max_size = {wrong}"));
        assert!(message.contains("`cache_max_size` must be a number of bytes"), "{message}");
    }
}

#[test]
fn places_to_listen() {
    for (text, bind) in [
        ("[::]:5000", tcp("::", 5000)),
        ("[::1]:0", tcp("::1", 0)),
        ("127.0.0.1:80", tcp("127.0.0.1", 80)),
        ("localhost:5000", tcp("localhost", 5000)),
        ("unix:/run/h.sock", Bind::Unix("/run/h.sock".into())),
    ] {
        assert_eq!(Bind::parse(text).as_ref(), Some(&bind), "{text}");
        assert_eq!(bind.to_string(), text);
    }
    assert_eq!(Bind::parse("unix:///run/h.sock"), Some(Bind::Unix("/run/h.sock".into())));
    for wrong in [
        "",
        "5000",
        ":5000",
        "::1:5000",
        "[::1]5000",
        "[::1]",
        "[localhost]:1",
        "h:",
        "h:+1",
        "h:65536",
        "h:1/",
        "a b:1",
        "unix:run",
        "unix://run/h",
        "unix:",
        "http://h:1",
    ] {
        assert_eq!(Bind::parse(wrong), None, "{wrong}");
    }
    let config = read("bind = ['[::]:5000', 'unix:/run/h.sock']");
    assert_eq!(config.bind, [tcp("::", 5000), Bind::Unix("/run/h.sock".into())]);
    let message = refusal("\n bind = ['[::]:5000', 'x']");
    assert!(message.starts_with("/etc/harmonia.toml, line 2: `bind` must be `address:port`"), "{message}");
    assert!(message.ends_with("not \"x\""), "{message}");
    assert!(refusal("bind = []").ends_with("not an empty list"));
    assert!(refusal("bind = 5000").ends_with("not 5000"));
    assert!(refusal("bind = [5000]").ends_with("not 5000"));
}

#[test]
fn connections_of_a_worker() {
    let most = |text| read(text).connections_per_worker.get();
    assert_eq!(most("max_connections = 0"), 256);
    assert_eq!(most("max_connections = 25000"), 25000);
    assert_eq!(most("max_connection_rate = 9\nmax_connections = 0"), 9);
    assert_eq!(most("max_connection_rate = 9\nmax_connections = 8"), 8);
    let both = read("max_connection_rate = 9\nmax_connections = 8");
    assert!(both.warnings.iter().any(|warning| warning.contains("`max_connection_rate` has no effect")));
    assert!(refusal("max_connection_rate = 0").contains("at least 1, not 0"));
    assert!(refusal("max_connections = -1").contains("not -1"));
}

#[test]
fn numbers() {
    assert_eq!(read("priority = -5").priority, -5);
    assert_eq!(read("workers = 0x10").workers.get(), 16);
    for (text, end) in [
        ("workers = 0", "`workers` must be a whole number from 1 to 1024, not 0"),
        ("workers = -1", "not -1"),
        ("workers = 1025", "not 1025"),
        ("workers = 'four'", "not \"four\""),
        ("workers = 1.5", "not 1.5"),
        ("workers = true", "not true"),
        ("priority = 30.0", "`priority` must be a whole number of 32 bits, not 30.0"),
        ("priority = 3000000000", "not 3000000000"),
        ("priority = 99999999999999999999", "not 99999999999999999999"),
        ("priority = 2026-11-23", "not a date"),
    ] {
        let message = refusal(text);
        assert!(message.starts_with("/etc/harmonia.toml, line 1: ") && message.ends_with(end), "{message}");
    }
}

#[test]
fn unknown_keys_name_the_nearest() {
    assert_eq!(
        refusal("bind = '[::]:1'\n\nsign_key_pats = []"),
        "/etc/harmonia.toml, line 3: there is no setting `sign_key_pats`; did you mean `sign_key_paths`?"
    );
    assert_eq!(refusal("hedgehog = 1"), "/etc/harmonia.toml, line 1: there is no setting `hedgehog`");
    assert_eq!(
        refusal("[zstd]\nlevle = 3"),
        "/etc/harmonia.toml, line 2: there is no setting `levle`; did you mean `level`?"
    );
    assert!(refusal("zworkers = 1\naworkers = 2").contains("line 1"), "the first in the file");
    assert!(refusal("[zstd]\n[zstdd]").contains("line 2"));
    assert!(refusal("[zstd]\n[zstd.level]").contains("`level` must be a whole number, not a table"));
}

#[test]
fn what_is_no_toml() {
    let message = refusal("workers = 4\nbind =");
    assert!(message.starts_with("/etc/harmonia.toml, line 2: "), "{message}");
    assert!(refusal("workers = 4\nworkers = 5").contains("line 2"));
}

#[test]
fn compression_of_old_files_and_of_new_ones() {
    let old = read(
        "enable_compression = true\n[zstd]\nlevel = 19\nlong_distance_matching = true\nwindow_log = 27\n\
         max_ldm_encoders_per_worker = 2",
    );
    let precompress = Precompress::Nothing;
    let zstd = Compression {
        format: Some(Format::Zstd),
        level: 19,
        threads: None,
        cold: Cold::Stream,
        precompress,
        in_transport: false,
    };
    assert_eq!(old.compression, zstd);
    let said = old.warnings.join("\n");
    assert!(said.contains("long_distance_matching, window_log, max_ldm_encoders_per_worker"), "{said}");
    let plain = Compression { format: None, level: 6, ..zstd };
    assert_eq!(read("").compression, plain);
    assert_eq!(read("enable_compression = true").compression.format, Some(Format::Zstd));
    assert_eq!(read("compression = 'none'\nenable_compression = true").compression, plain);
    let xz = Compression {
        format: Some(Format::Xz),
        level: 6,
        threads: None,
        cold: Cold::Identity,
        precompress,
        in_transport: false,
    };
    assert_eq!(read("compression = 'xz'\n[zstd]\nlevel = 3").compression, xz);
    let all = read(
        "compression = 'xz'\ncompression_level = 0\ncompression_threads = 3\ncompression_cold = 'stream'",
    );
    let threads = NonZeroUsize::new(3);
    assert_eq!(all.compression, Compression { level: 0, threads, cold: Cold::Stream, ..xz });
    assert!(refusal("zstd = 3").contains("`zstd` must be a table, not 3"));
    assert!(refusal("[zstd]\nlevel = 'best'").contains("line 2: `level`"));
    assert!(refusal("enable_compression = 1").contains("true or false, not 1"));
    assert!(refusal("compression = 'gzip'").contains("must be \"none\", \"zstd\" or \"xz\", not \"gzip\""));
    assert!(refusal("compression = 'zstd'\ncompression_level = 0").contains("from 1 to 22"));
    assert!(refusal("compression = 'xz'\ncompression_level = 10").contains("from 0 to 9"));
    assert!(refusal("compression_threads = 0").contains("from 1 to 1024"));
    assert!(read("transport_compression = true").compression.in_transport);
    assert_eq!(read("precompress = 'recent'").compression.precompress, Precompress::Recent);
    assert!(refusal("precompress = 'all'").contains("must be \"none\" or \"recent\""));
    assert!(refusal("compression_cold = 'wait'").contains("`compression_cold` must be"));
    let in_vain = read("precompress = 'recent'\ncompression_level = 3").warnings.join("\n");
    assert!(in_vain.contains("`compression_level` has no effect"), "{in_vain}");
    assert!(in_vain.contains("`precompress` has no effect"), "{in_vain}");
    assert_eq!(read("transport_compression = true\ncompression_level = 3").warnings.len(), 1);
    for wanted in ["compression = 'zstd'", "transport_compression = true"] {
        let none = read(&format!("{wanted}\ncache_max_size = 0"));
        assert!(none.warnings.iter().any(|said| said.contains("without a cache")), "{wanted}");
    }
}

#[test]
fn certificate_and_key_come_together() {
    let both = read("tls_cert_path = '/c'\ntls_key_path = '/k'").tls;
    assert_eq!(both, Some(TlsFiles { certificate: "/c".into(), key: "/k".into() }));
    assert_eq!(read("").tls, None);
    assert!(refusal("tls_cert_path = '/c'").contains("`tls_key_path` is missing"));
    assert!(refusal("workers = 1\ntls_key_path = '/k'").contains("line 2: `tls_cert_path` is missing"));
}

#[test]
fn store_directories() {
    for wrong in
        ["nix/store", "/", "/nix//store", "/nix/../store", "/nix/./store", "/nix/\\u0000store", "~/store"]
    {
        let message = refusal(&format!("virtual_nix_store = \"{wrong}\""));
        assert!(message.contains("`virtual_nix_store` must be an absolute path"), "{message}");
    }
    assert!(refusal("virtual_nix_store = ''").ends_with("not \"\""));
    let moved = with_env("virtual_nix_store = '/a'", &[("NIX_STORE_DIR", "/b/store")]).expect("is valid");
    assert_eq!((&*moved.virtual_nix_store, &*moved.real_nix_store), ("/b/store", Path::new("/b/store")));
    let empty = with_env("virtual_nix_store = '/a'", &[("NIX_STORE_DIR", "")]).expect("is valid");
    assert_eq!(empty.virtual_nix_store, "/a");
    let wrong = with_env("", &[("NIX_STORE_DIR", "store")]).expect_err("is relative").to_string();
    assert!(wrong.starts_with("$NIX_STORE_DIR: "), "{wrong}");
}

#[test]
fn keys_of_file_and_environment() {
    let env = [("SIGN_KEY_PATHS", "/c  /a\n/d"), ("SIGN_KEY_PATH", "/e")];
    let config = with_env("sign_key_paths = ['/a', '/b']\nsign_key_path = '/old'", &env).expect("is valid");
    assert_eq!(config.sign_key_paths, ["/a", "/b", "/old", "/c", "/d", "/e"].map(PathBuf::from));
    assert!(config.warnings.iter().any(|warning| warning.contains("`sign_key_path` is deprecated")));
    assert_eq!(read("sign_key_paths = '/one'").sign_key_paths, [PathBuf::from("/one")]);
    assert!(refusal("sign_key_paths = [1]").contains("not 1"));
}

/// What the table of keys says of a key's default and values is what the program does.
#[test]
fn the_table_of_keys_is_true() {
    let default = read("");
    let mut values = 0;
    for key in &KEYS {
        // A default that is one value, as the file would have it.
        let value = key.default.strip_prefix('`').and_then(|text| text.strip_suffix('`'));
        if let Some(value) = value.filter(|value| !value.contains('`') && *value != "virtual_nix_store") {
            assert_eq!(read(&format!("{} = {value}", key.name)), default, "{}", key.name);
            values += 1;
        }
        // Each word of a choice is taken, and no other.
        if key.kind.starts_with('"') {
            for word in key.kind.split('"').skip(1).step_by(2) {
                read(&format!("{} = '{word}'", key.name));
            }
            let told = refusal(&format!("{} = 'other'", key.name));
            assert!(told.ends_with(&format!("`{}` must be {}, not \"other\"", key.name, key.kind)), "{told}");
        }
        // No key may be a date.
        let told = refusal(&format!("{} = 2026-11-23", key.name));
        assert!(told.ends_with(&format!("must be {}, not a date", key.kind)), "{told}");
        assert!(!key.meaning.ends_with('.') && !key.meaning.contains('|') && !key.kind.contains('|'));
    }
    assert!(values > 15, "{values} defaults are values");
    let names: std::collections::BTreeSet<_> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(names.len(), KEYS.len(), "each once");
}

/// An empty path would be refused later, by what opens it: as a file without a name, at no line.
#[test]
fn what_is_empty_is_refused_with_its_line() {
    let expected = |key: &str| format!("`{key}` must be {}, not \"\"", keys::kind(key));
    for key in ["bind", "sign_key_paths"] {
        for (text, line) in [("''", 1), ("['']", 1), ("[\n'/a',\n'',\n]", 3)] {
            let message = refusal(&format!("{key} = {text}"));
            assert_eq!(message, format!("{FILE}, line {line}: {}", expected(key)));
        }
    }
    for key in KEYS.iter().filter(|key| key.kind.contains("path in quotes")).map(|key| key.name) {
        let message = refusal(&format!("\n{key} = ''"));
        assert_eq!(message, format!("{FILE}, line 2: {}", expected(key)));
    }
    assert_eq!(read("sign_key_paths = []").sign_key_paths, Vec::<PathBuf>::new());
}

#[test]
fn the_command_line_wins() {
    let overrides = Overrides { bind: vec!["127.0.0.1:0".to_owned()], workers: Some(1), priority: Some(40) };
    let config = read("bind = '[::]:1'\nworkers = 9").with(&overrides).expect("is valid");
    assert_eq!((config.bind, config.workers.get(), config.priority), (vec![tcp("127.0.0.1", 0)], 1, 40));
    let config = read("bind = '[::]:1'\nworkers = 9");
    assert_eq!(config.clone().with(&Overrides::default()).expect("is valid"), config);
    for wrong in [
        Overrides { workers: Some(0), ..<_>::default() },
        Overrides { bind: vec!["x".to_owned()], ..<_>::default() },
    ] {
        let message = read("").with(&wrong).expect_err("cannot be").to_string();
        assert!(message.starts_with("command line: "), "{message}");
    }
}

#[test]
fn which_file_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("is written");
        path
    };
    let (one, two) = (file("one.toml", "workers = 1"), file("two.toml", "workers = 2"));
    let named = two.to_string_lossy().into_owned();
    let env = move |name: &str| (name == "CONFIG_FILE").then(|| named.clone());
    let load = |explicit: Option<&Path>| Config::load(explicit, &env).expect("is valid");
    assert_eq!(load(Some(&one)).workers.get(), 1);
    assert_eq!(load(None).workers.get(), 2);
    assert_eq!(load(None).source, Some(two));

    let missing = folder.path().join("missing.toml");
    let first = |files: &[&Path]| first_of(files).expect("they can be read");
    let found = first(&[&missing, &one, &folder.path().join("two.toml")]);
    assert_eq!(found, (Some(one.clone()), "workers = 1".into()));
    assert_eq!(first(&[&missing]), (None, String::new()));
    let (relative, _) = first(&[&missing, Path::new("Cargo.toml")]);
    assert!(relative.is_some_and(|path| path.is_absolute() && path.ends_with("Cargo.toml")));
    let error = Config::load(Some(&missing), &|_| None).expect_err("is not there");
    assert_eq!(error.to_string(), format!("cannot read the settings file {}", missing.display()));
    assert!(error.source().is_some());
}
