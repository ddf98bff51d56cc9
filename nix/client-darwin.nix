# nix-darwin: asks the caches of `services.harmonia-client.caches`, and trusts their keys.
{
  config,
  lib,
  options,
  ...
}:
let
  client = import ./client.nix { inherit lib config; };
  byDeterminate = config.services.harmonia-client.installer == "determinate";
  isAsked = client.substituters != [ ];
  # The option of Determinate's module, by its present name or the earlier one; none where that module is not imported.
  # What stands here may depend on `options`, and on no `config`: the names of what a module sets are looked at before
  # there is one.
  determinate = lib.findFirst (name: options ? ${name}) null [
    "determinateNix"
    "determinate-nix"
  ];
in
{
  options.services.harmonia-client = client.options // {
    installer = lib.mkOption {
      type = lib.types.enum [
        "nix-darwin"
        "determinate"
      ];
      default = "nix-darwin";
      description = "Who writes nix.conf. With Determinate's Nix (`nix.enable = false`) `nix.settings` has no effect: import Determinate's module for nix-darwin and choose `determinate`.";
    };
  };

  config = lib.mkMerge [
    {
      assertions = [
        {
          assertion = byDeterminate -> determinate != null;
          message = "services.harmonia-client: installer is \"determinate\", and Determinate's module for nix-darwin, which writes nix.custom.conf, is not imported.";
        }
      ];
      nix.settings = lib.mkIf (isAsked && !byDeterminate) {
        inherit (client) substituters;
        trusted-public-keys = client.trustedPublicKeys;
      };
    }
    (lib.optionalAttrs (determinate != null) {
      ${determinate}.customSettings = lib.mkIf (isAsked && byDeterminate) {
        extra-substituters = lib.concatStringsSep " " client.substituters;
        extra-trusted-public-keys = lib.concatStringsSep " " client.trustedPublicKeys;
      };
    })
  ];
}
