//! Nix's settings as text: `nix.conf` files and `$NIX_CONFIG`, and what `nix config show` prints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::limits;

/// Settings by name, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// What Nix has where nothing is set, of what matters here.
    pub fn defaults() -> Self {
        let known = [
            ("substituters", "https://cache.nixos.org/"),
            ("trusted-public-keys", "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="),
            ("trusted-users", "root"),
            ("require-sigs", "true"),
            ("substitute", "true"),
            ("store", "auto"),
        ];
        Self(known.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
    }

    /// Reads lines of `name = value`, as `nix config show` prints them; others are skipped.
    pub fn shown(text: &str) -> Self {
        let pair = |line: &str| {
            let (name, value) = line.split_once(" =")?;
            Some((name.to_owned(), value.trim().to_owned()))
        };
        Self(text.lines().filter_map(pair).collect())
    }

    /// The value of a setting, if it has one that is not empty.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The words of a setting that takes several.
    pub fn words(&self, name: &str) -> Vec<String> {
        self.text(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    }

    /// Whether a switch is on.
    pub fn is_on(&self, name: &str) -> bool {
        self.text(name) == Some("true")
    }

    /// Applies the text of a configuration file, or of `$NIX_CONFIG`. `read` gives the text of a file that is
    /// included, by its path as it is written there.
    ///
    /// As Nix reads it: a comment ends a line, words are separated by blanks, the second is `=` or the first is
    /// `include`, and `extra-` adds to what there is. What Nix would refuse is skipped: Nix itself says so.
    pub fn apply(&mut self, text: &str, read: &dyn Fn(&str) -> Option<String>) {
        self.apply_nested(text, read, limits::NIX_CONF_DEPTH);
    }

    fn apply_nested(&mut self, text: &str, read: &dyn Fn(&str) -> Option<String>, depth: usize) {
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["include" | "!include", file] => {
                    if let Some(text) = read(file).filter(|_| depth > 0) {
                        self.apply_nested(&text, read, depth - 1);
                    }
                }
                [name, "=", ..] => self.set(name, &words[2..].join(" ")),
                _ => {}
            }
        }
    }

    fn set(&mut self, name: &str, value: &str) {
        match name.strip_prefix("extra-") {
            Some(name) => {
                let old = self.0.entry(present_name(name).to_owned()).or_default();
                *old = format!("{old} {value}").trim().to_owned();
            }
            None => {
                self.0.insert(present_name(name).to_owned(), value.to_owned());
            }
        }
    }
}

/// Names that Nix still takes for others.
fn present_name(name: &str) -> &str {
    match name {
        "binary-caches" => "substituters",
        "binary-cache-public-keys" => "trusted-public-keys",
        "trusted-binary-caches" => "trusted-substituters",
        name => name,
    }
}

/// Reads the file at `path`, its includes relative to the folder it is in; nothing where it cannot be read.
pub fn apply_file(settings: &mut Settings, path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let folder = path.parent().map(Path::to_owned).unwrap_or_default();
    settings.apply(&text, &|included| std::fs::read_to_string(folder.join(included)).ok());
    Some(text)
}

/// The files of a user's own settings, the weakest first, as Nix looks for them.
pub fn user_files(env: &dyn Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let list =
        |text: String| text.split(':').filter(|part| !part.is_empty()).map(PathBuf::from).collect::<Vec<_>>();
    let mut files = match env("NIX_USER_CONF_FILES") {
        Some(text) => list(text),
        None => {
            let own = env("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
            let own = own.or_else(|| Some(PathBuf::from(env("HOME")?).join(".config")));
            let others =
                env("XDG_CONFIG_DIRS").filter(|text| !text.is_empty()).unwrap_or("/etc/xdg".to_owned());
            own.into_iter().chain(list(others)).map(|folder| folder.join("nix/nix.conf")).collect()
        }
    };
    files.reverse();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_nix_does() {
        let mut settings = Settings::defaults();
        let text = "\
            # a comment\n\
            trusted-users = root @wheel # and another\n\
            extra-substituters = http://a\n\
            binary-cache-public-keys = k:1   k:2\n\
            include more.conf\n\
            !include absent.conf\n\
            substitute=false\n\
            require-sigs =\n";
        settings.apply(text, &|file| {
            (file == "more.conf").then(|| "extra-substituters = http://b\ninclude more.conf".to_owned())
        });
        let expected = 1 + limits::NIX_CONF_DEPTH;
        assert_eq!(settings.words("substituters")[..2], ["https://cache.nixos.org/", "http://a"]);
        assert_eq!(settings.words("substituters").len(), 1 + expected, "a circle of includes ends");
        assert_eq!(settings.words("trusted-public-keys"), ["k:1", "k:2"]);
        assert_eq!(settings.words("trusted-users"), ["root", "@wheel"]);
        assert!(settings.is_on("substitute"), "Nix wants blanks around the sign");
        assert_eq!(settings.text("require-sigs"), None);
    }

    #[test]
    fn what_nix_shows_is_understood() {
        let settings =
            Settings::shown("bash-prompt = \nsubstituters = http://a http://b\nstore = auto\nnothing\n");
        assert_eq!(settings.words("substituters"), ["http://a", "http://b"]);
        assert_eq!(settings.text("bash-prompt"), None);
        assert_eq!(settings.text("nothing"), None);
    }

    #[test]
    fn a_users_files_come_in_nixs_order() {
        let env = |name: &str| match name {
            "HOME" => Some("/h".to_owned()),
            "XDG_CONFIG_DIRS" => Some("/x:/y".to_owned()),
            _ => None,
        };
        let files = ["/y/nix/nix.conf", "/x/nix/nix.conf", "/h/.config/nix/nix.conf"].map(PathBuf::from);
        assert_eq!(user_files(&env), files);
        assert_eq!(
            user_files(&|name| (name == "NIX_USER_CONF_FILES").then(|| "/a:/b".to_owned())),
            ["/b", "/a"].map(PathBuf::from)
        );
        assert!(user_files(&|name| (name == "NIX_USER_CONF_FILES").then(String::new)).is_empty());
    }
}
