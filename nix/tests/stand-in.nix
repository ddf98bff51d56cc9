# As much of nixpkgs' lib and module system as the modules here use, so that they can be evaluated without nixpkgs.
#
# A module is read with the options' defaults and what a test sets; what its `config` comes to is the result. Types are
# not checked, and no module sees what another sets. As in the module system itself, the names of what a module sets are
# looked at before there is a `config`: a module whose names depend on one is an infinite recursion.
let
  isMarked = kind: value: builtins.isAttrs value && (value._type or null) == kind;

  merge =
    left: right:
    left
    // builtins.mapAttrs (
      name: value:
      if
        builtins.isAttrs value
        && builtins.isAttrs (left.${name} or null)
        && !(value ? _type)
        && !(value ? outPath)
      then
        merge left.${name} value
      else
        value
    ) right;

  # Without the marks of mkIf and mkMerge, and without what is not to be.
  resolved =
    value:
    if isMarked "if" value then
      if value.condition then resolved value.content else { }
    else if isMarked "merge" value then
      builtins.foldl' (left: right: merge left (resolved right)) { } value.contents
    else if builtins.isAttrs value && !(value ? outPath) then
      builtins.mapAttrs (_: resolved) (
        builtins.removeAttrs value (
          builtins.filter (name: isMarked "if" value.${name} && !value.${name}.condition) (builtins.attrNames value)
        )
      )
    else
      value;

  # The names of what a module sets, found as the module system does: whatever a mkIf's condition says.
  namesOf =
    value:
    if isMarked "if" value then
      namesOf value.content
    else if isMarked "merge" value then
      builtins.concatMap namesOf value.contents
    else
      builtins.attrNames value;

  setPath =
    path: value:
    if path == [ ] then value else { ${builtins.head path} = setPath (builtins.tail path) value; };

  getPath =
    path: value:
    if path == [ ] then
      { found = value; }
    else if value ? ${builtins.head path} then
      getPath (builtins.tail path) value.${builtins.head path}
    else
      null;

  defaultsOf =
    options:
    builtins.mapAttrs (_: option: if isMarked "option" option then option.default or null else defaultsOf option) options;

  type = name: { inherit name; };
  typeOf = name: _: type name;

  lib = {
    types = {
      package = type "package";
      str = type "str";
      int = type "int";
      bool = type "bool";
      nullOr = typeOf "nullOr";
      listOf = typeOf "listOf";
      nonEmptyListOf = typeOf "nonEmptyListOf";
      attrsOf = typeOf "attrsOf";
      submodule = typeOf "submodule";
      enum = typeOf "enum";
      either = _: typeOf "either";
      ints = {
        positive = type "positive";
        between = _: typeOf "between";
      };
    };
    mkOption = option: option // { _type = "option"; };
    mkEnableOption =
      what:
      lib.mkOption {
        default = false;
        description = "Whether to enable ${what}.";
      };
    mkIf = condition: content: {
      _type = "if";
      inherit condition content;
    };
    mkMerge = contents: {
      _type = "merge";
      inherit contents;
    };
    mkRenamedOptionModule = from: to: {
      _type = "renamed";
      inherit from to;
    };
    literalExpression = text: text;
    optional = condition: value: if condition then [ value ] else [ ];
    optionalAttrs = condition: value: if condition then value else { };
    unique = builtins.foldl' (seen: value: if builtins.elem value seen then seen else seen ++ [ value ]) [ ];
    all = builtins.all;
    findFirst =
      condition: default: list:
      builtins.head (builtins.filter condition list ++ [ default ]);
    attrValues = builtins.attrValues;
    concatMap = builtins.concatMap;
    concatStringsSep = builtins.concatStringsSep;
    concatMapStringsSep =
      separator: each: list:
      builtins.concatStringsSep separator (map each list);
    imap0 = each: list: builtins.genList (at: each at (builtins.elemAt list at)) (builtins.length list);
    toList = value: if builtins.isList value then value else [ value ];
    hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
    removePrefix =
      prefix: text:
      if lib.hasPrefix prefix text then
        builtins.substring (builtins.stringLength prefix) (-1) text
      else
        text;
    getExe = package: "${package}/bin/harmonia";
  };

  pkgs = {
    harmonia = "/package";
    formats.toml = _: {
      type = type "toml";
      # The settings themselves, where there would be a file with them.
      generate = _: settings: builtins.toJSON settings;
    };
  };

  # What `module` makes of `set`, among modules that declare the options `others`.
  evaluateAmong =
    others: module: set:
    let
      parts = import module {
        inherit lib pkgs config;
        options = merge others parts.options;
      };
      renames = builtins.filter (isMarked "renamed") (parts.imports or [ ]);
      renamed = builtins.foldl' (
        set: rename:
        let
          old = getPath rename.from set;
        in
        if old == null then set else merge set (setPath rename.to old.found)
      ) set renames;
      names = namesOf parts.config;
      config = builtins.deepSeq names (merge (defaultsOf parts.options) renamed);
    in
    {
      inherit names;
      options = parts.options;
      defaults = defaultsOf parts.options;
      disabled = parts.disabledModules or [ ];
      config = resolved parts.config;
    };
in
{
  inherit evaluateAmong;

  # What `module` makes of `set`.
  evaluate = evaluateAmong { };
}
