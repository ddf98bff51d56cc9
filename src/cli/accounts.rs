//! Users and groups by name.

use std::fmt;
use std::fs;
use std::path::Path;

use crate::config::Owner;

/// A name that stands for nobody.
#[derive(Debug, thiserror::Error)]
#[error(
    "socket_owner: there is no {kind} {name} in {file}; one that comes from elsewhere is set by its number"
)]
pub struct UnknownAccount {
    kind: &'static str,
    name: String,
    file: &'static str,
}

/// The numbers of a user and a group.
///
/// # Errors
/// A name that is neither a number nor in the files that have this machine's own accounts.
pub fn numbers(owner: &Owner) -> Result<(Option<u32>, Option<u32>), UnknownAccount> {
    let find = |name: &Option<String>, kind, file: &'static str| match name {
        None => Ok(None),
        Some(name) => match name.parse().ok().or_else(|| number_in(Path::new(file), name)) {
            Some(number) => Ok(Some(number)),
            None => Err(UnknownAccount { kind, name: name.clone(), file }),
        },
    };
    Ok((find(&owner.user, "user", "/etc/passwd")?, find(&owner.group, "group", "/etc/group")?))
}

/// A user. `Display` is the name, if it is known, and the number.
pub struct User {
    name: Option<String>,
    /// The number.
    pub number: u32,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} (uid {})", self.number),
            None => write!(f, "uid {}", self.number),
        }
    }
}

/// Whom this process runs as.
pub fn own_user() -> User {
    let number = rustix::process::geteuid().as_raw();
    let text = fs::read("/etc/passwd").unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let of_line = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == number.to_string()).then(|| name.to_owned())
    };
    User { name: text.lines().find_map(of_line), number }
}

/// The third field of the line that begins with `name`, as both files have it.
fn number_in(file: &Path, name: &str) -> Option<u32> {
    let text = fs::read(file).ok()?;
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_this_runs_as() {
        let id = std::process::Command::new("id").arg("-un").output().expect("id is there");
        let name = String::from_utf8_lossy(&id.stdout).trim().to_owned();
        let own = own_user();
        assert!(
            [format!("{name} (uid {})", own.number), format!("uid {}", own.number)]
                .contains(&own.to_string())
        );
        assert_eq!(User { name: None, number: 7 }.to_string(), "uid 7");
    }

    #[test]
    fn names_and_numbers() {
        let owner = |user: &str, group: &str| {
            let named = |name: &str| Some(name.to_owned()).filter(|name| !name.is_empty());
            numbers(&Owner { user: named(user), group: named(group) })
        };
        assert_eq!(owner("root", "4711").expect("both are known"), (Some(0), Some(4711)));
        assert_eq!(owner("", "").expect("nothing is asked"), (None, None));
        let told = owner("no-such-user", "").expect_err("it is unknown").to_string();
        assert!(told.contains("no user no-such-user in /etc/passwd"), "{told}");
        let told = owner("", "no-such-group").expect_err("it is unknown").to_string();
        assert!(told.contains("no group no-such-group in /etc/group"), "{told}");
    }
}
