//! The command line: one file a command. This room alone prints and exits.

mod accounts;
mod cache;
mod certificates;
mod client;
pub mod demo;
mod doctor;
pub mod generate;
pub mod keys;
pub mod log;
mod output;
pub mod pins;
mod progress;
mod reload;
mod requests;
pub mod serve;
mod service;
mod store;

use std::process::ExitCode;

use clap::Parser as _;

/// What `--help` says below the commands.
const WITHOUT_COMMAND: &str = "\
Without a command it serves, with the settings of --config, else of $CONFIG_FILE, else of ./settings.toml, else of
/etc/harmonia/settings.toml, else with defaults: the store /nix/store, on port 5000 of every address. To see it work without a Nix store: harmonia demo";

/// A Nix binary cache server: serves the store of this machine over HTTP, signed.
#[derive(Debug, clap::Parser)]
#[command(version, after_help = WITHOUT_COMMAND, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Existing unit files start it without.
    #[command(subcommand)]
    command: Option<Command>,
    /// Those of `serve`, for where no command is.
    #[command(flatten)]
    serve: serve::Serve,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Serve(serve::Serve),
    Demo(demo::Demo),
    Keys(keys::Keys),
    Store(store::Store),
    Cache(cache::Cache),
    Doctor(doctor::Doctor),
    Generate(generate::Generate),
    Pin(pins::PinCommand),
    Unpin(pins::UnpinCommand),
    Pins(pins::PinsCommand),
    Reload(reload::Reload),
}

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    let Arguments { command, serve } = Arguments::parse();
    match command {
        None => serve::run(serve),
        Some(Command::Serve(serve)) => serve::run(serve),
        Some(Command::Demo(demo)) => demo::run(&demo),
        Some(Command::Keys(keys)) => keys::run(&keys),
        Some(Command::Store(store)) => store::run(&store),
        Some(Command::Cache(cache)) => cache::run(&cache),
        Some(Command::Doctor(doctor)) => doctor::run(&doctor),
        Some(Command::Generate(generate)) => generate::run(&generate),
        Some(Command::Pin(pin)) => pins::pin(&pin),
        Some(Command::Unpin(unpin)) => pins::unpin(&unpin),
        Some(Command::Pins(all)) => pins::pins(&all),
        Some(Command::Reload(reload)) => reload::run(&reload),
    }
}
