//! `harmonia pin`, `unpin` and `pins`: what the garbage collector is to spare by name.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use super::output;
use super::serve::store_settings;
use crate::causes::with_causes;
use crate::config::{Config, ConfigError};
use crate::formats::store_path::StorePathError;
use crate::store::pins::{Pin, PinError, Pinned, Pins};

/// Exit status where something could not be done, as clap's for a wrong command line.
const FAILED: u8 = 2;

/// Which store, and where its pins are.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// The server's settings; without it $CONFIG_FILE, ./settings.toml, /etc/harmonia/settings.toml or defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Keep a store path, and all that it refers to, from the garbage collector until it is unpinned.
#[derive(Debug, clap::Args)]
pub struct PinCommand {
    /// What to call the pin; one that is there already moves to the new path.
    name: String,
    /// A store path, something in one, or a link to one, such as ./result or a profile.
    path: PathBuf,
    #[command(flatten)]
    place: Place,
}

/// Give a pinned path back to the garbage collector.
#[derive(Debug, clap::Args)]
pub struct UnpinCommand {
    /// The pin's name.
    name: String,
    #[command(flatten)]
    place: Place,
}

/// List what is pinned: a name and a store path on each line.
#[derive(Debug, clap::Args)]
pub struct PinsCommand {
    #[command(flatten)]
    place: Place,
}

/// Why a command about pins failed.
#[derive(Debug, thiserror::Error)]
enum PinsError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("virtual_nix_store: {0}")]
    StoreDir(#[from] StorePathError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
}

/// `harmonia pin`
pub fn pin(command: &PinCommand) -> ExitCode {
    done(|| {
        let PinCommand { name, path, place } = command;
        let Pinned { path: pinned, before, is_certain } = place.pins()?.pin(name, path)?;
        let mut out = output::standard();
        writeln!(out, "{name} keeps {pinned}")?;
        if let Some(before) = before.filter(|before| !before.ends_with(pinned.as_str())) {
            writeln!(out, "it kept {} before", before.display())?;
        }
        if !is_certain {
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(
                io::stderr(),
                "harmonia: this user can neither write temporary roots nor ask the Nix daemon for them: a garbage \
                 collection that runs just now does not know of the pin. Once it has ended, see `harmonia pins`"
            );
        }
        Ok(())
    })
}

/// `harmonia unpin`
pub fn unpin(command: &UnpinCommand) -> ExitCode {
    done(|| {
        let target = command.place.pins()?.unpin(&command.name)?;
        writeln!(output::standard(), "{} no longer keeps {}", command.name, target.display())?;
        Ok(())
    })
}

/// `harmonia pins`
pub fn pins(command: &PinsCommand) -> ExitCode {
    done(|| {
        let mut out = output::standard();
        for Pin { name, target, is_valid } in command.place.pins()?.list()? {
            let note = if is_valid { "" } else { "\t(not a valid path: keeps nothing)" };
            writeln!(out, "{name}\t{}{note}", target.display())?;
        }
        Ok(())
    })
}

impl Place {
    fn pins(&self) -> Result<Pins, PinsError> {
        let config = Config::load(self.config.as_deref(), &|name| std::env::var(name).ok())?;
        Ok(Pins::new(store_settings(&config)?, &config.roots_dir))
    }
}

fn done(work: impl FnOnce() -> Result<(), PinsError>) -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(io::stderr(), "harmonia: {}", with_causes(&error));
            ExitCode::from(FAILED)
        }
    }
}
