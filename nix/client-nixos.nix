# NixOS: asks the caches of `services.harmonia-client.caches`, and trusts their keys.
{ config, lib, ... }:
let
  client = import ./client.nix { inherit lib config; };
in
{
  options.services.harmonia-client = client.options;

  config = lib.mkIf (client.substituters != [ ]) {
    nix.settings = {
      inherit (client) substituters;
      trusted-public-keys = client.trustedPublicKeys;
    };
  };
}
