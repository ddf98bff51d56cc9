# NixOS: `services.harmonia`, in place of nixpkgs' own module and with the names of its options.
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
    defaultBind = "[::]:5000";
  };
  keys = common.signKeyPaths;
  settings = common.settings { };
  # Each key reaches the unit as a credential: its user needs no right to read the file.
  credentials = lib.imap0 (number: file: {
    name = "sign-key-${toString number}";
    inherit file;
  }) keys;
  # Where the server puts roots of what it is to keep, and `harmonia pin` the pins.
  rootsDir = settings.roots_dir or "/nix/var/nix/gcroots/harmonia";
  streams = map (lib.removePrefix "unix:") (lib.toList settings.bind);
  isStream =
    stream:
    lib.hasPrefix "/" stream
    || builtins.match "([0-9]+\\.[0-9.]+|\\[[0-9a-fA-F:.]+(%[^]]+)?]):[0-9]+" stream != null;
  renamed =
    name:
    lib.mkRenamedOptionModule
      [
        "services"
        "harmonia"
        "cache"
        name
      ]
      [
        "services"
        "harmonia"
        name
      ];
in
{
  disabledModules = [ "services/networking/harmonia.nix" ];

  imports = map renamed [
    "enable"
    "package"
    "signKeyPath"
    "signKeyPaths"
    "settings"
  ];

  options.services.harmonia = common.options;

  config = lib.mkIf cfg.enable {
    assertions = common.assertions keys ++ [
      {
        # systemd looks up no names, and leaves out a line that it does not understand.
        assertion = lib.all isStream streams;
        message = "services.harmonia: bind names a host. systemd listens, which takes addresses only: `127.0.0.1:5000`, `[::1]:5000` or `unix:/path`.";
      }
    ];

    # Its other commands: `harmonia pin`, `keys rotate`, `reload`, `doctor`.
    environment.systemPackages = [ cfg.package ];
    # Where they look for settings, so that they mean the same folders as the server.
    environment.etc."harmonia/settings.toml".source = common.settingsFile settings;

    # The daemon holds the roots of what is being sent, where it lets this user ask; as nixpkgs' own module has it.
    nix.settings.extra-allowed-users = [ "harmonia" ];

    users.users.harmonia = {
      isSystemUser = true;
      group = "harmonia";
    };
    users.groups.harmonia = { };

    # With it the kernel encrypts what the server sends; loading it is not the server's to do.
    boot.kernelModules = lib.optional (settings ? tls_cert_path) "tls";

    systemd.tmpfiles.rules = [ "d ${rootsDir} 0755 harmonia harmonia -" ];

    # systemd holds the port: no connection is refused while the server starts anew.
    systemd.sockets.harmonia = {
      description = "Harmonia, a Nix binary cache";
      wantedBy = [ "sockets.target" ];
      listenStreams = streams;
    };

    systemd.services.harmonia = {
      description = "Harmonia, a Nix binary cache";
      wantedBy = [ "multi-user.target" ];
      requires = [ "harmonia.socket" ];
      # It keeps what it sends from the garbage collector by way of the daemon.
      wants = [ "nix-daemon.socket" ];
      after = [
        "network.target"
        "harmonia.socket"
        "nix-daemon.socket"
      ];
      environment = {
        CONFIG_FILE = common.settingsFile settings;
        SIGN_KEY_PATHS = lib.concatMapStringsSep " " (key: "%d/${key.name}") credentials;
      };
      serviceConfig = {
        Type = "notify-reload";
        ExecStart = lib.getExe cfg.package;
        LoadCredential = map (key: "${key.name}:${key.file}") credentials;
        User = "harmonia";
        Group = "harmonia";
        CacheDirectory = "harmonia";
        CacheDirectoryMode = "0700";
        ReadWritePaths = "-${rootsDir}";
        Restart = "on-failure";
        RestartSec = "1s";
        WatchdogSec = "30s";
        LimitNOFILE = 65536;

        AmbientCapabilities = "";
        CapabilityBoundingSet = "";
        DevicePolicy = "closed";
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        NoNewPrivileges = true;
        PrivateDevices = true;
        PrivateMounts = true;
        PrivateTmp = true;
        PrivateUsers = true;
        ProcSubset = "pid";
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectProc = "invisible";
        ProtectSystem = "strict";
        RemoveIPC = true;
        RestrictAddressFamilies = [
          "AF_INET"
          "AF_INET6"
          "AF_UNIX"
        ];
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SystemCallArchitectures = "native";
        SystemCallFilter = [
          "@system-service"
          "~@privileged"
          "~@resources"
        ];
        UMask = "0077";
      };
    };
  };
}
