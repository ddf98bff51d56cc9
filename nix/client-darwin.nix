# nix-darwin: asks the caches of `services.harmonia-client.caches`, and trusts their keys.
{ config, lib, ... }:
let
  client = import ./client.nix { inherit lib config; };
  cfg = config.services.harmonia-client;
in
{
  options.services.harmonia-client = client.options // {
    installer = lib.mkOption {
      type = lib.types.enum [
        "nix-darwin"
        "determinate"
      ];
      default = "nix-darwin";
      description = "Who writes nix.conf. With Determinate's Nix (`nix.enable = false`) `nix.settings` has no effect: choose `determinate`.";
    };
  };

  config = lib.mkIf (client.substituters != [ ]) (
    if cfg.installer == "determinate" then
      {
        determinate-nix.customSettings = {
          extra-substituters = lib.concatStringsSep " " client.substituters;
          extra-trusted-public-keys = lib.concatStringsSep " " client.trustedPublicKeys;
        };
      }
    else
      {
        nix.settings = {
          inherit (client) substituters;
          trusted-public-keys = client.trustedPublicKeys;
        };
      }
  );
}
