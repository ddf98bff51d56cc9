# The options of a client's module, the same on every platform: substituters and the keys they sign with stand in one
# place, so that no machine trusts a key that its cache no longer signs with.
{ lib, config }:
let
  inherit (lib) mkOption types;
  caches = lib.attrValues config.services.harmonia-client.caches;
in
{
  options.caches = mkOption {
    default = { };
    example = {
      office = {
        url = "http://cache.example:5000";
        publicKeys = [ "cache.example-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" ];
      };
    };
    description = "The caches that this machine asks, by any name.";
    type = types.attrsOf (
      types.submodule {
        options = {
          url = mkOption {
            type = types.str;
            description = "Where the cache is.";
          };
          publicKeys = mkOption {
            type = types.nonEmptyListOf types.str;
            description = "The keys that it signs with: two while one is being replaced. The cache's landing page shows them.";
          };
        };
      }
    );
  };

  substituters = map (cache: cache.url) caches;
  trustedPublicKeys = lib.unique (lib.concatMap (cache: cache.publicKeys) caches);
}
