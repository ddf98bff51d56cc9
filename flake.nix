{
  description = "Harmonia, a Nix binary cache server";

  inputs.nixpkgs.url = "nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
        "aarch64-darwin"
        "x86_64-darwin"
      ];
      forEach = make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
      # The module with this flake's package, unless it is told another.
      withPackage =
        module:
        { lib, pkgs, ... }:
        {
          imports = [ module ];
          services.harmonia.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.default;
        };
    in
    {
      packages = forEach (pkgs: {
        default = pkgs.callPackage ./nix/package.nix { };
      });

      overlays.default = final: _: { harmonia = final.callPackage ./nix/package.nix { }; };

      nixosModules = {
        default = withPackage ./nix/nixos.nix;
        client = ./nix/client-nixos.nix;
      };

      darwinModules = {
        default = withPackage ./nix/darwin.nix;
        client = ./nix/client-darwin.nix;
      };
    };
}
