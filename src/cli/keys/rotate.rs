//! `harmonia keys rotate`: one signing key takes the place of another, without a moment in which anybody refuses
//! anything.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use super::files::{self, LoadedKey, load_secret_key};
use super::{KeysError, complain};
use crate::formats::signature::{PublicKey, SecretKey};
use crate::http::date::DateCache;

/// How long clients remember a narinfo, with the signatures that it had: Nix's narinfo-cache-positive-ttl.
const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What `harmonia keys rotate` is given.
#[derive(Debug, clap::Args)]
pub struct Rotate {
    /// The name of the key in use, such as cache.example.org-1.
    name: String,
    /// The file of its secret key [default: NAME.secret].
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Where the next secret key goes; a file that is there already is never touched [default: beside the one in use].
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Where the next public key goes, likewise [default: beside the secret one].
    #[arg(long, value_name = "FILE")]
    public_file: Option<PathBuf>,
}

/// Makes the next key, unless it is made already, and says the steps.
pub fn run(rotate: &Rotate, out: &mut dyn Write) -> Result<ExitCode, KeysError> {
    let old_file = rotate.key.clone().unwrap_or_else(|| format!("{}.secret", rotate.name).into());
    let old = load(&old_file, &rotate.name)?;
    let name = next_name(&rotate.name);
    let beside = |ending: &str| old_file.with_file_name(format!("{name}.{ending}"));
    let new_file = rotate.secret_file.clone().unwrap_or_else(|| beside("secret"));
    let public_file =
        rotate.public_file.clone().unwrap_or_else(|| new_file.with_file_name(format!("{name}.public")));
    let is_made = !new_file.exists();
    let new = match is_made {
        true => make(&name, &old_file, &new_file, public_file)?,
        // Whatever else is in the file is left as it is.
        false => load(&new_file, &name).map_err(|_| KeysError::Exists { path: new_file.clone() })?,
    };
    let made = fs::metadata(&new_file).and_then(|found| found.modified());
    let made = made.map_err(|error| KeysError::Read { path: new_file.clone(), error })?;
    let rotation =
        Rotation { old, new, old_file: shown(&old_file), new_file: shown(&new_file), is_made, made };
    out.write_all(rotation.steps().as_bytes()).map_err(KeysError::Stdout)?;
    Ok(ExitCode::SUCCESS)
}

fn load(file: &Path, name: &str) -> Result<PublicKey, KeysError> {
    let LoadedKey { key, warning } = load_secret_key(file, None)?;
    if key.name() != name {
        let (found, wanted) = (key.name().to_owned(), name.to_owned());
        return Err(KeysError::OtherKey { path: file.to_owned(), found, wanted });
    }
    if let Some(warning) = warning {
        complain(&warning);
    }
    Ok(key.public())
}

/// A new pair; whoever reads the old secret key, such as the server, can read the new one.
fn make(name: &str, old_file: &Path, new_file: &Path, public_file: PathBuf) -> Result<PublicKey, KeysError> {
    let key = SecretKey::generate(name).map_err(KeysError::Generate)?;
    files::write_pair(&key, new_file.to_owned(), public_file)?;
    if let Err(error) = files::share_as(old_file, new_file) {
        complain(&error);
    }
    Ok(key.public())
}

/// The path as it can be written into a settings file.
fn shown(file: &Path) -> String {
    std::path::absolute(file).unwrap_or_else(|_| file.to_owned()).display().to_string()
}

/// What comes after `name`: `-2` after `-1`, and after a name without a number.
fn next_name(name: &str) -> String {
    let numbered = name.rsplit_once('-').and_then(|(base, number)| {
        let is_plain = number.bytes().all(|byte| byte.is_ascii_digit());
        Some((base, number.parse::<u64>().ok().filter(|_| is_plain)?.checked_add(1)?))
    });
    numbered.map_or_else(|| format!("{name}-2"), |(base, number)| format!("{base}-{number}"))
}

/// One key on its way out, and the one that comes.
struct Rotation {
    old: PublicKey,
    new: PublicKey,
    /// Absolute.
    old_file: String,
    new_file: String,
    /// Whether the new key has just been made.
    is_made: bool,
    /// When it was.
    made: SystemTime,
}

impl Rotation {
    /// All that is to be done, in order.
    fn steps(&self) -> String {
        let Self { old, new, old_file, new_file, is_made, made } = self;
        let (old_name, new_name) = (old.name(), new.name());
        let made = match is_made {
            true => "is made".to_owned(),
            false => format!("was made on {}", day(*made)),
        };
        let [old_file, new_file] = [old_file, new_file].map(|file| quoted(file));
        let (old, new) = (old.to_string(), new.to_string());
        let both = |one: &str, other: &str| format!("{one} {other}");
        format!(
            "{new_name} takes the place of {old_name}; it {made}.\n\
             \n\
             1. Now, the server signs with both.\n{}\
             \n\
             2. Then every client trusts both. On each, “harmonia doctor” says which it trusts.\n{}\
             \n\
             3. When all clients do, and not before {}, the server signs with the new one alone. Clients remember what\n   \
             they were told for 30 days, with the signature of the old key alone if it was before step 1.\n{}\
             \n\
             4. Then the clients trust the new one alone, and the file of the old one may go.\n{}",
            server(&format!("{old_file}, {new_file}"), &both(&old_file, &new_file)),
            clients(&both(&old, &new), &both(&quoted(&old), &quoted(&new))),
            day(self.end()),
            server(&new_file, &new_file),
            clients(&new, &quoted(&new)),
        )
    }

    /// From when on the old key may go, if the server signs with both since the new one was made.
    fn end(&self) -> SystemTime {
        self.made + REMEMBERED
    }
}

/// The server's settings; `toml` and `nix` are the words of a list in either.
fn server(toml: &str, nix: &str) -> String {
    format!(
        "     settings.toml:          sign_key_paths = [{toml}]\n     \
         and then:               harmonia reload, or SIGHUP: no connection is dropped\n     \
         or NixOS, nix-darwin:   services.harmonia.signKeyPaths = [ {nix} ];\n"
    )
}

/// The clients' settings; `conf` is the keys as nix.conf lists them, `nix` the words of a list. Determinate's module writes
/// a list into its file as JSON, which Nix does not read there as keys: it gets the line's text.
fn clients(conf: &str, nix: &str) -> String {
    let text = quoted(conf);
    format!(
        "     nix.conf:               extra-trusted-public-keys = {conf}\n     \
         or NixOS, nix-darwin:   nix.settings.extra-trusted-public-keys = [ {nix} ];\n     \
         or Determinate's Nix:   determinate-nix.customSettings.extra-trusted-public-keys = {text};\n     \
         or our client module:   services.harmonia-client.caches.<name>.publicKeys = [ {nix} ];\n"
    )
}

/// A text as TOML and the Nix language both quote it.
fn quoted(text: &str) -> String {
    // JSON's quoting is TOML's, and Nix's but for the interpolation that no path or key is likely to hold.
    serde_json::Value::from(text).to_string().replace("${", "\\${")
}

/// The day of a time, such as `Fri, 25 Dec 2026`, as HTTP writes it.
fn day(time: SystemTime) -> String {
    let text = *DateCache::new().at(time);
    String::from_utf8_lossy(&text[..DAY_LEN]).into_owned()
}

const DAY_LEN: usize = "Fri, 25 Dec 2026".len();

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn numbers_go_on() {
        for (name, next) in [
            ("cache.example.org-1", "cache.example.org-2"),
            ("cache-9", "cache-10"),
            ("cache", "cache-2"),
            ("my-cache", "my-cache-2"),
            ("cache-+1", "cache-+1-2"),
            ("cache-", "cache--2"),
            ("cache-18446744073709551615", "cache-18446744073709551615-2"),
        ] {
            assert_eq!(next_name(name), next);
        }
    }

    #[test]
    fn the_steps_have_every_setting_and_the_day() {
        let (old, new) =
            (SecretKey::generate("k-1").unwrap().public(), SecretKey::generate("k-2").unwrap().public());
        let rotation = Rotation {
            old: old.clone(),
            new: new.clone(),
            old_file: "/etc/nix/k-1.secret".into(),
            new_file: "/etc/nix/k-2.secret".into(),
            is_made: true,
            // The example of RFC 9110.
            made: UNIX_EPOCH + Duration::from_secs(784_111_777),
        };
        let steps = rotation.steps();
        for part in [
            "k-2 takes the place of k-1; it is made.\n",
            "sign_key_paths = [\"/etc/nix/k-1.secret\", \"/etc/nix/k-2.secret\"]\n",
            "services.harmonia.signKeyPaths = [ \"/etc/nix/k-1.secret\" \"/etc/nix/k-2.secret\" ];\n",
            &format!(" extra-trusted-public-keys = {old} {new}\n"),
            &format!("publicKeys = [ \"{old}\" \"{new}\" ];\n"),
            &format!("customSettings.extra-trusted-public-keys = \"{old} {new}\";\n"),
            "not before Tue, 06 Dec 1994",
            "sign_key_paths = [\"/etc/nix/k-2.secret\"]\n",
            &format!(" extra-trusted-public-keys = {new}\n"),
        ] {
            assert!(steps.contains(part), "no “{part}” in:\n{steps}");
        }
    }
}
