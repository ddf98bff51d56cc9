//! The pages in a real browser: colours, keyboard, the tree that screen readers read, narrow windows, and the policy that
//! forbids everything else. Chromium is large, so `scripts/test --full` installs and runs this; it is ignored otherwise.
//!
//! With `HARMONIA_SCREENSHOTS=FOLDER` it leaves pictures there, to be looked at.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the support")]
mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::server::Settings;
use support::store::hash_of;
use support::{Kind, Scratch, Server, Store, poll, write};

/// The names of keys that WebDriver has in a private part of Unicode.
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";

/// Chromium, driven by way of chromedriver.
struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: Scratch,
}

impl Browser {
    fn start() -> Self {
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let profile = Scratch::new();
        let mut command = Command::new("chromedriver");
        command
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let driver = command.spawn().expect("chromedriver is installed: scripts/test --full sees to it");
        let mut browser = Self { driver, port, session: String::new(), _profile: profile };
        poll("chromedriver to listen", Duration::from_secs(60), || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        let folder = format!("--user-data-dir={}", browser._profile.path().display());
        let options = json!({ "args": [
            "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", folder,
        ]});
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" },
        }}});
        let begun = browser.call("POST", "/session", Some(wanted));
        browser.session = format!("/session/{}", begun["sessionId"].as_str().expect("a session"));
        browser
    }

    /// One command of WebDriver's: JSON over HTTP.
    fn call(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("chromedriver listens");
        stream.set_read_timeout(Some(support::COMMAND_LIMIT)).expect("it is a plain setting");
        let body = body.map_or(String::new(), |body| body.to_string());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).expect("it is sent");
        let mut answer = Vec::new();
        // Some versions keep the connection in spite of what was asked: so no further than the length it tells.
        let text = loop {
            let mut part = [0; 65_536];
            let count = stream.read(&mut part).expect("chromedriver answers");
            answer.extend_from_slice(&part[..count]);
            let text = String::from_utf8_lossy(&answer).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let field = head.lines().find_map(|line| {
                    line.to_ascii_lowercase()
                        .strip_prefix("content-length:")
                        .map(|length| length.trim().to_owned())
                });
                let length: usize = field.and_then(|length| length.parse().ok()).unwrap_or(usize::MAX);
                if body.len() >= length || count == 0 {
                    break body.to_owned();
                }
            }
            assert!(count > 0, "chromedriver closed");
        };
        let mut value: Value = serde_json::from_str(&text).expect("chromedriver speaks JSON");
        let value = value["value"].take();
        assert!(value.get("error").is_none(), "{method} {path}: {value}");
        value
    }

    fn post(&self, what: &str, body: Value) -> Value {
        self.call("POST", &format!("{}{what}", self.session), Some(body))
    }

    fn get(&self, what: &str) -> Value {
        self.call("GET", &format!("{}{what}", self.session), None)
    }

    fn open(&self, url: &str) {
        self.post("/url", json!({ "url": url }));
    }

    fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", json!({ "script": format!("return {script}"), "args": [] }))
    }

    fn devtools(&self, command: &str, params: Value) -> Value {
        self.post("/goog/cdp/execute", json!({ "cmd": command, "params": params }))
    }

    fn press(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key })))
            .collect();
        self.post(
            "/actions",
            json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] }),
        );
    }

    fn prefer(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    fn resize(&self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", size);
    }

    /// Leaves a picture, where one is wanted.
    fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("HARMONIA_SCREENSHOTS") else { return };
        let data = self.get("/screenshot");
        let bytes = data_encoding::BASE64.decode(data.as_str().expect("base64").as_bytes()).expect("base64");
        write(std::path::Path::new(&folder).join(format!("{name}.png")), bytes);
    }

    /// Roles and names of the tree that screen readers read.
    fn tree(&self) -> Vec<(String, String)> {
        let tree = self.devtools("Accessibility.getFullAXTree", json!({}));
        let nodes = tree["nodes"].as_array().expect("a list").iter();
        let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
        nodes
            .filter(|node| node["ignored"] != true)
            .map(|node| (text(&node["role"]), text(&node["name"])))
            .collect()
    }

    /// What the browser complained of since it was asked last.
    fn complaints(&self) -> Vec<String> {
        let log = self.post("/se/log", json!({ "type": "browser" }));
        let messages = log.as_array().expect("a list").iter().map(|entry| entry["message"].to_string());
        // It asks for an icon of its own accord, and there is none.
        messages.filter(|message| !message.contains("favicon.ico")).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its end ends Chromium's processes too; without it they would stay.
        if !self.session.is_empty() && !std::thread::panicking() {
            self.call("DELETE", &self.session, None);
        } else if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) {
            let head =
                format!("DELETE {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n", self.session);
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.read(&mut [0; 1024]));
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// A signed server over a small closure.
fn site() -> (Store, Server, String) {
    let store = Store::new(Kind::Chroot);
    let library = store.add("libhello-with-quite-a-long-name-for-a-narrow-window-1.0", |tree| {
        write(
            tree.join("lib/a-file-with-a-name-that-is-longer-than-a-telephone-is-wide.so.1.0.0"),
            "contents",
        );
    });
    let program =
        store.register("hello-2.12", &[&library], |folder, path| write(folder.join("bin/hello"), path));
    let (secret, _) = store.key("cache.example-1");
    let server = Settings::of(&store).keys(&[&secret]).start();
    (store, server, program)
}

#[test]
#[ignore = "needs Chromium: scripts/test --full installs it and runs this"]
fn pages_are_sound_in_a_browser() {
    let (_store, server, program) = site();
    let browser = Browser::start();
    let hash = hash_of(&program);
    let pages = [
        ("landing", "/".to_owned()),
        ("search", "/search?q=hello".to_owned()),
        ("path", format!("/path/{hash}")),
        ("folder", format!("/serve/{hash}/bin/")),
    ];
    for (name, address) in &pages {
        browser.resize(1100, 900);
        browser.open(&format!("{}{address}", server.url()));
        let background = |scheme: &str| {
            browser.prefer(scheme);
            browser.picture(&format!("{name}-{scheme}"));
            browser.run("getComputedStyle(document.body).backgroundColor")
        };
        let (light, dark) = (background("light"), background("dark"));
        assert!(light != dark && light != "rgba(0, 0, 0, 0)", "{name}: the style holds: {light} {dark}");
        for width in [360, 700] {
            browser.resize(width, 800);
            let wide = browser.run("document.scrollingElement.scrollWidth").as_u64().expect("a number");
            assert!(wide <= width.into(), "{name}: {wide} wide in a window of {width}");
        }
        browser.picture(&format!("{name}-narrow"));
        check_tree(name, &browser.tree());
        assert_eq!(browser.complaints(), Vec::<String>::new(), "{name}");
    }
}

fn check_tree(page: &str, tree: &[(String, String)]) {
    let count = |role: &str| tree.iter().filter(|(found, _)| found == role).count();
    for landmark in ["banner", "main", "contentinfo"] {
        assert_eq!(count(landmark), 1, "{page}: {landmark} in {tree:?}");
    }
    assert_eq!(count("search"), usize::from(page != "folder"), "{page}");
    for (role, name) in tree {
        let is_used = matches!(role.as_str(), "link" | "button" | "searchbox" | "checkbox" | "heading");
        assert!(!is_used || !name.trim().is_empty(), "{page}: a {role} without a name");
    }
}

#[test]
#[ignore = "needs Chromium: scripts/test --full installs it and runs this"]
fn the_keyboard_is_enough() {
    let (_store, server, program) = site();
    let browser = Browser::start();
    browser.open(&server.url());
    let focused = |what: &str| browser.run(&format!("document.activeElement.{what}"));
    browser.press(TAB);
    assert_eq!(focused("textContent"), "Skip to the content");
    assert_ne!(browser.run("getComputedStyle(document.activeElement).outlineStyle"), "none", "focus shows");
    let left = browser.run("document.activeElement.getBoundingClientRect().left").as_f64().expect("a number");
    assert!(left >= 0.0, "what has the focus can be seen");
    browser.press(TAB);
    browser.press(TAB);
    assert_eq!(focused("name"), "q");
    browser.press(&format!("hello-2{ENTER}"));
    let arrives = |part: &str| {
        poll(part, Duration::from_secs(60), || {
            browser.get("/url").as_str().filter(|url| url.contains(part)).map(str::to_owned)
        })
    };
    arrives("/search?q=hello-2");
    // To the first result: the link to the content, the name of the site, field, button, choice.
    let expected = format!("{}/path/{}", server.url(), hash_of(&program));
    for _ in 0..8 {
        browser.press(TAB);
        if focused("href") == expected.as_str() {
            break;
        }
    }
    assert_eq!(focused("href"), expected.as_str());
    browser.press(ENTER);
    arrives("/path/");
    assert_eq!(browser.run("document.querySelector('h1').textContent"), "hello-2.12");
}
