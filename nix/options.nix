# The options that NixOS and nix-darwin have in common, and the settings file that is made of them.
{
  lib,
  pkgs,
  config,
  defaultBind,
}:
let
  inherit (lib) mkOption mkEnableOption types;
  cfg = config.services.harmonia;
  format = pkgs.formats.toml { };
in
{
  options = {
    enable = mkEnableOption "Harmonia, a Nix binary cache that serves this machine's store";

    package = mkOption {
      type = types.package;
      default = pkgs.harmonia;
      defaultText = lib.literalExpression "pkgs.harmonia";
      description = "The program.";
    };

    signKeyPath = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/var/lib/secrets/harmonia.secret";
      description = "File of a secret key that signs; `harmonia keys generate` makes one. Not in the Nix store, where all may read it.";
    };

    signKeyPaths = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Files of secret keys that sign, all of them: one more than usual while a key is replaced.";
    };

    bind = mkOption {
      type = types.either types.str (types.listOf types.str);
      default = defaultBind;
      description = "Where to listen: `address:port`, `[IPv6 address]:port` or `unix:/path`; several as a list.";
    };

    workers = mkOption {
      type = types.ints.between 1 1024;
      default = 4;
      description = "Threads that serve; as many as cores is best.";
    };

    priority = mkOption {
      type = types.int;
      default = 30;
      description = "Rank among a client's caches; the lowest is asked first, and cache.nixos.org has 40.";
    };

    maxConnectionRate = mkOption {
      type = types.ints.positive;
      default = 256;
      description = "The most connections that one worker holds at a time.";
    };

    enableCompression = mkOption {
      type = types.bool;
      default = false;
      description = "Whether NARs are offered compressed.";
    };

    keepServed = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "30d";
      description = "How long after a client last asked for it a path is kept from the garbage collector, in days (`d`) or weeks (`w`).";
    };

    settings = mkOption {
      inherit (format) type;
      default = { };
      example = {
        cache_max_size = "100G";
      };
      description = "Further keys of the settings file, as its documentation lists them. They win over the options above.";
    };
  };

  # Every key file, each once.
  signKeyPaths = lib.unique (lib.optional (cfg.signKeyPath != null) cfg.signKeyPath ++ cfg.signKeyPaths);

  # `more` is what the platform adds.
  settings =
    more:
    {
      inherit (cfg) bind workers priority;
      max_connection_rate = cfg.maxConnectionRate;
      enable_compression = cfg.enableCompression;
    }
    // lib.optionalAttrs (cfg.keepServed != null) { keep_served = cfg.keepServed; }
    // more
    // cfg.settings;

  settingsFile = settings: format.generate "harmonia.toml" settings;

  assertions =
    keys:
    [
      {
        assertion = keys != [ ];
        message = "services.harmonia: set signKeyPaths. Without a signature clients take nothing but content-addressed paths. `harmonia keys generate` makes a key.";
      }
      {
        assertion = lib.all (key: !(lib.hasPrefix builtins.storeDir key)) keys;
        message = "services.harmonia: a signing key lies in the Nix store, where every user may read it. Give its path as text in quotes.";
      }
    ];
}
