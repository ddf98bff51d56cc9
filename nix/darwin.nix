# nix-darwin: `services.harmonia`, a daemon of launchd.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.harmonia;
  common = import ./options.nix {
    inherit lib pkgs config;
    defaultBind = "0.0.0.0:5000";
  };
  keys = common.signKeyPaths;
  settings = common.settings { sign_key_paths = keys; };
  # launchd's usual 256 open files are fewer than the connections of one worker.
  files.NumberOfFiles = 65536;
in
{
  options.services.harmonia = common.options;

  config = lib.mkIf cfg.enable {
    assertions = common.assertions keys;

    # Its other commands: `harmonia pin`, `keys rotate`, `reload`, `doctor`.
    environment.systemPackages = [ cfg.package ];
    # Where they look for settings, so that they mean the same folders as the server.
    environment.etc."harmonia/settings.toml".source = common.settingsFile settings;

    launchd.daemons.harmonia.serviceConfig = {
      Label = "org.nixos.harmonia";
      # The program is in the store, which may be a volume that is mounted later at a start of the machine: a job whose
      # program is not there is put aside and not tried again. (No ampersand: some versions write it as it is.)
      ProgramArguments = [
        "/bin/sh"
        "-c"
        "/bin/wait4path /nix/store; exec \"$0\" \"$@\""
        (lib.getExe cfg.package)
        "serve"
        "--config"
        "${common.settingsFile settings}"
      ];
      # As root, so that it makes the folder of its roots (`roots_dir`) itself.
      RunAtLoad = true;
      KeepAlive = true;
      # What it does is asked for by others who wait: no throttling of processor or disk.
      ProcessType = "Interactive";
      StandardOutPath = "/var/log/harmonia.log";
      StandardErrorPath = "/var/log/harmonia.error.log";
      SoftResourceLimits = files;
      HardResourceLimits = files;
    };
  };
}
