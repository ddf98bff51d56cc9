//! Where the settings of a Nix client are changed: the file, or what writes it.

use std::path::{Path, PathBuf};

/// Where a line is to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file that people write.
    File(PathBuf),
    /// NixOS writes the file.
    NixOs,
    /// nix-darwin writes the file.
    NixDarwin,
    /// Determinate's Nix writes the file, and leaves another one to people.
    Determinate(PathBuf),
}

impl Place {
    /// What writes the system's `nix.conf` that has this text.
    pub fn of(file: &Path, text: &str) -> Self {
        // The comment at the head of what each of them writes.
        let head: String = text.lines().take_while(|line| line.starts_with('#')).collect();
        if head.contains("nix-darwin configuration") {
            Self::NixDarwin
        } else if head.contains("NixOS configuration") {
            Self::NixOs
        } else if text.contains("nix.custom.conf") {
            Self::Determinate(file.with_file_name("nix.custom.conf"))
        } else {
            Self::File(file.to_owned())
        }
    }

    /// The line that sets `name` to `value`, and where it goes.
    pub fn line(&self, name: &str, value: &str) -> String {
        let quoted = || nix_value(name, value);
        match self {
            Self::File(file) => format!("in {}: {name} = {value}", file.display()),
            Self::NixOs => format!("in the NixOS configuration: nix.settings.{name} = {};", quoted()),
            Self::NixDarwin => {
                format!("in the nix-darwin configuration: nix.settings.{name} = {};", quoted())
            }
            Self::Determinate(file) => {
                let line = format!("in {}: {name} = {value}", file.display());
                match determinate_value(name, value) {
                    Some(quoted) => {
                        format!("{line} (with nix-darwin: determinate-nix.customSettings.{name} = {quoted};)")
                    }
                    None => line,
                }
            }
        }
    }

    /// How changed lines take effect, where they do not by themselves.
    pub fn afterwards(&self) -> &'static str {
        match self {
            Self::NixOs => "nixos-rebuild switch",
            Self::NixDarwin => "darwin-rebuild switch",
            Self::File(_) => {
                "restart its daemon: systemctl restart nix-daemon, or on a Mac \
                 launchctl kickstart -k system/org.nixos.nix-daemon"
            }
            Self::Determinate(_) => {
                "restart its daemon: systemctl restart nix-daemon, or on a Mac \
                 launchctl kickstart -k system/systems.determinate.nix-daemon"
            }
        }
    }
}

/// A text in the Nix language.
fn text(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${"))
}

/// A setting's value for Determinate's module for nix-darwin, where that takes the setting. It writes a list into its file as
/// JSON, which Nix does not read there as words: so the line's text.
fn determinate_value(name: &str, value: &str) -> Option<String> {
    match (name, value) {
        // Determinate's own daemon sees to it, and its module refuses it.
        ("ssl-cert-file", _) => None,
        (_, "true" | "false") => Some(value.to_owned()),
        _ => Some(text(value)),
    }
}

/// A setting's value in the Nix language: settings that take several words are lists there.
fn nix_value(name: &str, value: &str) -> String {
    match (name, value) {
        (_, "true" | "false") => value.to_owned(),
        ("ssl-cert-file", _) => text(value),
        _ => format!("[ {} ]", value.split_whitespace().map(text).collect::<Vec<_>>().join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_words() {
        let file = Path::new("/etc/nix/nix.conf");
        let line = |text: &str| Place::of(file, text).line("extra-substituters", "http://a http://b");
        assert_eq!(line("cores = 2\n"), "in /etc/nix/nix.conf: extra-substituters = http://a http://b");
        let nixos =
            "# WARNING: this file is generated from the nix.* options in\n# your NixOS configuration\n";
        assert_eq!(
            line(nixos),
            "in the NixOS configuration: nix.settings.extra-substituters = [ \"http://a\" \"http://b\" ];"
        );
        let darwin =
            "# WARNING: this file is generated from the nix.* options in\n# your nix-darwin configuration.\n";
        assert!(line(darwin).starts_with("in the nix-darwin configuration: nix.settings.extra-sub"));
        let determinate = line("!include nix.custom.conf\n");
        assert!(
            determinate.starts_with("in /etc/nix/nix.custom.conf: extra-substituters = http://a http://b (")
        );
        assert!(
            determinate
                .contains("determinate-nix.customSettings.extra-substituters = \"http://a http://b\";)"),
            "{determinate}"
        );
        let custom = Place::of(file, "!include nix.custom.conf\n").line("ssl-cert-file", "/a");
        assert_eq!(custom, "in /etc/nix/nix.custom.conf: ssl-cert-file = /a", "that module refuses it");
        assert_eq!(
            Place::of(file, nixos).line("substitute", "true"),
            "in the NixOS configuration: nix.settings.substitute = true;"
        );
    }
}
