{
  lib,
  stdenv,
  rustPlatform,
  installShellFiles,
}:
rustPlatform.buildRustPackage {
  pname = "harmonia";
  inherit ((lib.importTOML ../Cargo.toml).package) version;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../Cargo.lock
      ../Cargo.toml
      ../benches
      ../loadtest
      ../src
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;
  cargoBuildFlags = [ "--package=harmonia" ];

  # scripts/test runs the tests: they need a Nix store to write to, and the network's registries.
  doCheck = false;

  nativeBuildInputs = [ installShellFiles ];

  # Units that start an earlier Harmonia start it by this name.
  postInstall = ''
    ln -s harmonia "$out/bin/harmonia-cache"
  ''
  + lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    "$out/bin/harmonia" generate man-pages man
    installManPage man/*
    installShellCompletion --cmd harmonia \
      --bash <("$out/bin/harmonia" generate completions bash) \
      --fish <("$out/bin/harmonia" generate completions fish) \
      --zsh <("$out/bin/harmonia" generate completions zsh)
  '';

  meta = {
    description = "Nix binary cache server: serves a live Nix store over HTTP, signed";
    license = with lib.licenses; [
      mit
      asl20
    ];
    mainProgram = "harmonia";
    platforms = lib.platforms.linux ++ lib.platforms.darwin;
  };
}
