//! What a cache says about a store path: the narinfo, its JSON form, and the fingerprint that is signed.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::hash::{self, HashError, Sha256};
use super::signature::{PublicKey, SecretKey, Signature};
use super::store_path::{StoreDir, StorePath, StorePathError};

/// The version of the JSON form: the one of Nix ≥ 2.35, with structured content addresses and signatures.
const JSON_VERSION: u8 = 3;

/// What the database knows about a valid path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathInfo {
    /// The path.
    pub path: StorePath,
    /// The hash of its NAR.
    pub nar_hash: Sha256,
    /// The size of its NAR in bytes; never 0, as no NAR is empty.
    pub nar_size: u64,
    /// What it refers to, itself included where it does: sorted, each once.
    pub references: Vec<StorePath>,
    /// The derivation that it was built from.
    pub deriver: Option<StorePath>,
    /// Signatures as the database has them, `name:base64` each, in its order.
    pub signatures: Vec<String>,
    /// The content address, such as `fixed:r:sha256:…` or `text:sha256:…`.
    pub ca: Option<String>,
    /// When it was registered, in seconds since 1970; 0 where that is not known.
    pub registration_time: i64,
}

/// The text that a narinfo's signatures sign: `1;<path>;<hash>;<size>;<references, full and sorted>`.
pub fn fingerprint(dir: &StoreDir, info: &PathInfo) -> String {
    debug_assert!(info.references.is_sorted(), "clients sort them before they verify");
    let mut text = format!("1;{};{};{};", dir.display(&info.path), info.nar_hash, info.nar_size);
    for (index, reference) in info.references.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        append(&mut text, format_args!("{comma}{}", dir.display(reference)));
    }
    text
}

/// The signatures to serve: the database's that are well formed, in their order, then one of each key; none
/// twice.
///
/// What is not a signature of 64 bytes is left out: under the name of a trusted key, it makes clients abort
/// where a missing one would only be missing.
pub fn sign_all(dir: &StoreDir, info: &PathInfo, keys: &[SecretKey]) -> Vec<String> {
    merge_signatures(&info.signatures, keys, &fingerprint(dir, info))
}

/// As [`sign_all`], for any message.
pub(super) fn merge_signatures(kept: &[String], keys: &[SecretKey], message: &str) -> Vec<String> {
    // Written anew, so that a line end that base64 may hold never reaches a narinfo.
    let kept =
        kept.iter().filter_map(|text| Signature::parse(text).ok()).map(|signature| signature.to_string());
    let mut signatures = Vec::new();
    for signature in kept.chain(keys.iter().map(|key| key.sign(message.as_bytes()).to_string())) {
        if !signatures.contains(&signature) {
            signatures.push(signature);
        }
    }
    signatures
}

/// A narinfo, to be rendered.
#[derive(Clone, Copy, Debug)]
pub struct NarInfo<'a> {
    /// The path; of its signatures only [`NarInfo::signatures`] is rendered.
    pub info: &'a PathInfo,
    /// Where the NAR is, relative to the narinfo; with no slash in front, which would escape a path prefix.
    pub url: &'a str,
    /// The compression of what is at the URL, `none` where there is none.
    pub compression: &'a str,
    /// The hash of what is at the URL.
    pub file_hash: Option<Sha256>,
    /// The size of what is at the URL, in bytes.
    pub file_size: Option<u64>,
    /// The signatures, as [`sign_all`] gives them.
    pub signatures: &'a [String],
}

impl NarInfo<'_> {
    /// The text that clients read. They are particular about it: `References:` keeps its space when it is
    /// empty, a field without value has no line, and the last line ends too.
    pub fn render(&self, dir: &StoreDir) -> String {
        let info = self.info;
        let mut text = format!(
            "StorePath: {}\nURL: {}\nCompression: {}\n",
            dir.display(&info.path),
            self.url,
            self.compression
        );
        if let Some(hash) = self.file_hash {
            append(&mut text, format_args!("FileHash: {hash}\n"));
        }
        if let Some(size) = self.file_size {
            append(&mut text, format_args!("FileSize: {size}\n"));
        }
        append(
            &mut text,
            format_args!("NarHash: {}\nNarSize: {}\nReferences:", info.nar_hash, info.nar_size),
        );
        for reference in &info.references {
            append(&mut text, format_args!(" {reference}"));
        }
        text.push_str(if info.references.is_empty() { " \n" } else { "\n" });
        if let Some(deriver) = &info.deriver {
            append(&mut text, format_args!("Deriver: {deriver}\n"));
        }
        for signature in self.signatures {
            append(&mut text, format_args!("Sig: {signature}\n"));
        }
        if let Some(ca) = &info.ca {
            append(&mut text, format_args!("CA: {ca}\n"));
        }
        text
    }

    /// The JSON form, as `nix path-info --json` of Nix ≥ 2.35 gives it for a binary cache; its `version` is 3.
    ///
    /// `ultimate` says whether the *reader's* store built the path itself, so a cache always says no.
    pub fn to_json(&self, dir: &StoreDir) -> String {
        let info = self.info;
        let references: Vec<&str> = info.references.iter().map(StorePath::as_str).collect();
        let signatures: Vec<Value> = self.signatures.iter().filter_map(|text| signature_json(text)).collect();
        let mut value = json!({
            "version": JSON_VERSION,
            "storeDir": dir.as_str(),
            "path": info.path.as_str(),
            "narHash": info.nar_hash.to_sri(),
            "narSize": info.nar_size,
            "references": references,
            "ca": info.ca.as_deref().and_then(content_address_json),
            "deriver": info.deriver.as_ref().map(StorePath::as_str),
            "registrationTime": Some(info.registration_time).filter(|&time| time != 0),
            "ultimate": false,
            "signatures": signatures,
            "url": self.url,
            "compression": self.compression,
        });
        if let Some(hash) = self.file_hash {
            value["downloadHash"] = hash.to_sri().into();
        }
        if let Some(size) = self.file_size {
            value["downloadSize"] = size.into();
        }
        value.to_string()
    }
}

/// The structured form of a signature, or nothing where the text has no colon.
pub(super) fn signature_json(text: &str) -> Option<Value> {
    let (name, bytes) = text.split_once(':')?;
    Some(json!({ "keyName": name, "sig": bytes }))
}

/// The structured form of `fixed:r:sha256:…`, `fixed:sha256:…`, `fixed:git:sha1:…` and `text:sha256:…`.
fn content_address_json(ca: &str) -> Option<Value> {
    let (method, hash) = if let Some(hash) = ca.strip_prefix("text:") {
        ("text", hash)
    } else {
        let hash = ca.strip_prefix("fixed:")?;
        match hash.split_once(':')? {
            ("r", hash) => ("nar", hash),
            ("git", hash) => ("git", hash),
            _ => ("flat", hash),
        }
    };
    Some(json!({ "method": method, "hash": hash::to_sri(hash)? }))
}

/// A narinfo as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedNarInfo {
    /// What it says of the path: references sorted, signatures in the order of their lines, no registration
    /// time.
    pub info: PathInfo,
    /// Where the NAR is.
    pub url: String,
    /// The compression; `bzip2` where there is no such line, as of old.
    pub compression: String,
    /// The hash of what is at the URL, if it says.
    pub file_hash: Option<Sha256>,
    /// The size of what is at the URL, if it says.
    pub file_size: Option<u64>,
}

impl ParsedNarInfo {
    /// The first of `keys` that made one of the signatures.
    pub fn verified_by<'a>(&self, dir: &StoreDir, keys: &'a [PublicKey]) -> Option<&'a PublicKey> {
        let fingerprint = fingerprint(dir, &self.info);
        let signatures: Vec<Signature> =
            self.info.signatures.iter().filter_map(|text| Signature::parse(text).ok()).collect();
        keys.iter()
            .find(|key| signatures.iter().any(|signature| key.verify(fingerprint.as_bytes(), signature)))
    }
}

/// Why a text is not a narinfo. Lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NarInfoError {
    /// A line with no colon; a blank line is one too.
    #[error("line {line} has no “:”")]
    NoColon {
        /// The line's number.
        line: usize,
    },
    /// No blank after the colon, which Nix takes for granted: it would read on into the next line.
    #[error("line {line} has no blank after “{field}:”")]
    NoBlank {
        /// The line's number.
        line: usize,
        /// The field's name.
        field: String,
    },
    /// The last line does not end.
    #[error("the last line, {line}, does not end with a newline")]
    NoNewline {
        /// The line's number.
        line: usize,
    },
    /// A path that is none, or is in another store directory.
    #[error("line {line}: {error}")]
    Path {
        /// The line's number.
        line: usize,
        /// What is wrong with it.
        error: StorePathError,
    },
    /// A hash that is none.
    #[error("line {line}: {error}")]
    Hash {
        /// The line's number.
        line: usize,
        /// What is wrong with it.
        error: HashError,
    },
    /// A size that is no number.
    #[error("line {line}: “{value}” is not a number of bytes")]
    Size {
        /// The line's number.
        line: usize,
        /// What is there.
        value: String,
    },
    /// A second line for a field that can have only one.
    #[error("line {line}: there is “{field}” already")]
    Twice {
        /// The line's number.
        line: usize,
        /// The field's name.
        field: &'static str,
    },
    /// A field that must be there is not, or is empty, or is a size of 0.
    #[error("there is no “{0}”")]
    Missing(&'static str),
}

/// Reads a narinfo as Nix does: fields in any order, unknown ones skipped, the last of a repeated one counts.
///
/// It is stricter in one thing: a field with no blank after its colon is an error of its own.
///
/// # Errors
/// See [`NarInfoError`].
pub fn parse(dir: &StoreDir, text: &str) -> Result<ParsedNarInfo, NarInfoError> {
    let mut draft = Draft::default();
    for field in fields(text) {
        draft.take(dir, &field?)?;
    }
    draft.finish()
}

/// The store directory that a narinfo's `StorePath` is in.
///
/// # Errors
/// Where there is no such line, or no absolute path in it.
pub fn store_dir(text: &str) -> Result<StoreDir, NarInfoError> {
    for field in fields(text) {
        let Field { line, name, value } = field?;
        if name == "StorePath" {
            let parent = value.rsplit_once('/').map_or(value, |(parent, _)| parent);
            return StoreDir::new(parent).map_err(|error| NarInfoError::Path { line, error });
        }
    }
    Err(NarInfoError::Missing("StorePath"))
}

/// A narinfo's text with `signatures` after those that it has; everything else stays as it was.
pub fn add_signatures(text: &str, signatures: &[String]) -> String {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let last = lines.iter().rposition(|line| line.starts_with("Sig:")).map(|index| index + 1);
    let address = || lines.iter().position(|line| line.starts_with("CA:"));
    let (before, after) = lines.split_at(last.or_else(address).unwrap_or(lines.len()));
    let added = signatures.iter().map(|signature| format!("Sig: {signature}\n"));
    before.concat() + &added.collect::<String>() + &after.concat()
}

/// A line of a narinfo.
struct Field<'a> {
    line: usize,
    name: &'a str,
    value: &'a str,
}

fn fields(text: &str) -> impl Iterator<Item = Result<Field<'_>, NarInfoError>> {
    text.split_inclusive('\n').zip(1..).map(|(whole, line)| {
        let (name, rest) = whole.split_once(':').ok_or(NarInfoError::NoColon { line })?;
        let rest = rest.strip_suffix('\n').ok_or(NarInfoError::NoNewline { line })?;
        let blank = || NarInfoError::NoBlank { line, field: name.to_owned() };
        let value = rest.strip_prefix(' ').ok_or_else(blank)?;
        Ok(Field { line, name, value })
    })
}

/// A narinfo of which some lines are read.
#[derive(Default)]
struct Draft {
    path: Option<StorePath>,
    url: String,
    compression: String,
    file_hash: Option<Sha256>,
    file_size: Option<u64>,
    nar_hash: Option<Sha256>,
    nar_size: u64,
    references: Vec<StorePath>,
    deriver: Option<StorePath>,
    signatures: Vec<String>,
    ca: Option<String>,
}

impl Draft {
    fn take(&mut self, dir: &StoreDir, field: &Field<'_>) -> Result<(), NarInfoError> {
        let &Field { line, name, value } = field;
        let path = |error| NarInfoError::Path { line, error };
        match name {
            "StorePath" => self.path = Some(dir.parse(value).map_err(path)?),
            "URL" => self.url = value.to_owned(),
            "Compression" => self.compression = value.to_owned(),
            "FileHash" => self.file_hash = Some(field.hash()?),
            "FileSize" => self.file_size = Some(field.size()?),
            "NarHash" => self.nar_hash = Some(field.hash()?),
            "NarSize" => self.nar_size = field.size()?,
            "References" if !self.references.is_empty() => {
                return Err(NarInfoError::Twice { line, field: "References" });
            }
            "References" => {
                let basenames = value.split(' ').filter(|basename| !basename.is_empty());
                self.references =
                    basenames.map(StorePath::from_basename).collect::<Result<_, _>>().map_err(path)?;
                self.references.sort_unstable();
                self.references.dedup();
            }
            "Deriver" if value == "unknown-deriver" => {}
            "Deriver" => self.deriver = Some(StorePath::from_basename(value).map_err(path)?),
            "Sig" => self.signatures.push(value.to_owned()),
            "CA" if self.ca.is_some() => return Err(NarInfoError::Twice { line, field: "CA" }),
            "CA" => self.ca = Some(value.to_owned()).filter(|ca| !ca.is_empty()),
            _ => {}
        }
        Ok(())
    }

    fn finish(self) -> Result<ParsedNarInfo, NarInfoError> {
        let path = self.path.ok_or(NarInfoError::Missing("StorePath"))?;
        let nar_hash = self.nar_hash.ok_or(NarInfoError::Missing("NarHash"))?;
        if self.url.is_empty() {
            return Err(NarInfoError::Missing("URL"));
        }
        if self.nar_size == 0 {
            return Err(NarInfoError::Missing("NarSize"));
        }
        Ok(ParsedNarInfo {
            info: PathInfo {
                path,
                nar_hash,
                nar_size: self.nar_size,
                references: self.references,
                deriver: self.deriver,
                signatures: self.signatures,
                ca: self.ca,
                registration_time: 0,
            },
            url: self.url,
            compression: if self.compression.is_empty() { "bzip2".to_owned() } else { self.compression },
            file_hash: self.file_hash,
            file_size: self.file_size,
        })
    }
}

impl Field<'_> {
    fn hash(&self) -> Result<Sha256, NarInfoError> {
        Sha256::parse(self.value).map_err(|error| NarInfoError::Hash { line: self.line, error })
    }

    fn size(&self) -> Result<u64, NarInfoError> {
        self.value.parse().map_err(|_| NarInfoError::Size { line: self.line, value: self.value.to_owned() })
    }
}

/// Appends formatted text; a `String` never refuses any.
fn append(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Nix 2.8 wrote and signed this: `nix copy --to 'file://…?compression=none&secret-key=…'`.
    const SELF: &str = "\
StorePath: /opt/nix/store/mk63lx34wyfrpp8m5djk37055jzcwsnb-self
URL: nar/06grajk7i3aaxg0jcix99w5yk920bvgc8jgar68z1h8zxmc2xavs.nar
Compression: none
FileHash: sha256:06grajk7i3aaxg0jcix99w5yk920bvgc8jgar68z1h8zxmc2xavs
FileSize: 224
NarHash: sha256:06grajk7i3aaxg0jcix99w5yk920bvgc8jgar68z1h8zxmc2xavs
NarSize: 224
References: l6f9lha26wbf7284mncciham13hnkxdm-dep mk63lx34wyfrpp8m5djk37055jzcwsnb-self
Deriver: z19ssnaf249kixin0l28c3m6cdglg43g-self.drv
Sig: test-1:r7C4WfXv5M+1bc834iT5E/VyjfZ7D/M8jxlxa2ZbAmkcf/VJvY+Ff6wJzliHAFKp2QOjrh+JOoOmEhyd1Y2sCg==
";

    /// Likewise, of a path without references.
    const DEP: &str = "\
StorePath: /opt/nix/store/l6f9lha26wbf7284mncciham13hnkxdm-dep
URL: nar/00kjynz8n03652qccs76ivsvark3pr3dfr6w1ba3x7bx83kcknvv.nar
Compression: none
FileHash: sha256:00kjynz8n03652qccs76ivsvark3pr3dfr6w1ba3x7bx83kcknvv
FileSize: 120
NarHash: sha256:00kjynz8n03652qccs76ivsvark3pr3dfr6w1ba3x7bx83kcknvv
NarSize: 120
References: \n\
Deriver: rpmwqm7mdv2mbn2dym18w1di2di9sa2m-dep.drv
Sig: test-1:36QYVR+YL4QdA+oG9AOYHndZ74m/aNgVF1k2DuPdK8M/nflCQJ7E+6enDL362eB3laNeByYLLmeBCbqhxpDRAQ==
";

    /// The key that signed them.
    const SECRET: &str =
        "test-1:s0v16/BM4lai2VuGQ8CB4ScKlAr1jwrSLM4uJcP3ZwYXcnQ6Q7/t3MQaMIbcdYIf+Fcob4Yk9eFcGbF7ZH9rgw==";

    fn secret() -> SecretKey {
        SecretKey::parse(SECRET).unwrap()
    }

    fn read(text: &str) -> ParsedNarInfo {
        parse(&store_dir(text).unwrap(), text).unwrap()
    }

    fn render(dir: &StoreDir, parsed: &ParsedNarInfo) -> String {
        narinfo(parsed).render(dir)
    }

    fn narinfo(parsed: &ParsedNarInfo) -> NarInfo<'_> {
        NarInfo {
            info: &parsed.info,
            url: &parsed.url,
            compression: &parsed.compression,
            file_hash: parsed.file_hash,
            file_size: parsed.file_size,
            signatures: &parsed.info.signatures,
        }
    }

    #[test]
    fn the_same_text_as_nix() {
        for text in [SELF, DEP] {
            assert_eq!(render(&store_dir(text).unwrap(), &read(text)), text);
        }
        let with_ca =
            format!("{DEP}CA: fixed:r:sha256:1xmr8jicvzszfzpz46g37mlpvbzjl2wpwvl2b05psipssyp1sm8h\n");
        assert_eq!(render(&store_dir(&with_ca).unwrap(), &read(&with_ca)), with_ca);
    }

    #[test]
    fn what_is_not_known_has_no_line() {
        let mut parsed = read(DEP);
        parsed.info.deriver = None;
        parsed.info.signatures.clear();
        (parsed.file_hash, parsed.file_size) = (None, None);
        let text = render(&store_dir(DEP).unwrap(), &parsed);
        assert!(text.ends_with("NarSize: 120\nReferences: \n"), "{text}");
        assert!(!text.contains("File"));
    }

    #[test]
    fn the_same_signatures_as_nix() {
        for text in [SELF, DEP] {
            let (dir, mut parsed) = (store_dir(text).unwrap(), read(text));
            let signatures = std::mem::take(&mut parsed.info.signatures);
            assert_eq!(sign_all(&dir, &parsed.info, &[secret()]), signatures);
        }
        let dir = store_dir(SELF).unwrap();
        assert_eq!(
            fingerprint(&dir, &read(SELF).info),
            "1;/opt/nix/store/mk63lx34wyfrpp8m5djk37055jzcwsnb-self;\
            sha256:06grajk7i3aaxg0jcix99w5yk920bvgc8jgar68z1h8zxmc2xavs;224;\
            /opt/nix/store/l6f9lha26wbf7284mncciham13hnkxdm-dep,\
            /opt/nix/store/mk63lx34wyfrpp8m5djk37055jzcwsnb-self"
        );
    }

    #[test]
    fn signatures_are_kept_and_none_is_there_twice() {
        let (dir, mut parsed) = (store_dir(SELF).unwrap(), read(SELF));
        let other = SecretKey::generate("other-1").unwrap();
        let [own] = &parsed.info.signatures[..] else { panic!("one signature") };
        let (own, foreign) = (own.clone(), other.sign(b"anything").to_string());
        let short = "test-1:AAAA".to_owned();
        parsed.info.signatures =
            vec![foreign.clone(), short, own.clone(), foreign.clone(), "no colon".to_owned()];
        let signatures = sign_all(&dir, &parsed.info, &[secret(), other.clone(), other.clone()]);
        let fresh = other.sign(fingerprint(&dir, &parsed.info).as_bytes()).to_string();
        assert_eq!(signatures, [foreign, own, fresh]);
    }

    #[test]
    fn verified_by_the_right_key_only() {
        let (dir, parsed) = (store_dir(SELF).unwrap(), read(SELF));
        let other = SecretKey::generate("other-1").unwrap().public();
        let namesake = SecretKey::generate("test-1").unwrap().public();
        let right = secret().public();
        let keys = [other.clone(), namesake.clone(), right.clone()];
        assert_eq!(parsed.verified_by(&dir, &keys), Some(&right));
        assert_eq!(parsed.verified_by(&dir, &[other, namesake]), None);
        let mut changed = parsed;
        changed.info.nar_size += 1;
        assert_eq!(changed.verified_by(&dir, &keys), None);
    }

    #[test]
    fn json_form() {
        let text = format!("{SELF}CA: fixed:r:sha256:1xmr8jicvzszfzpz46g37mlpvbzjl2wpwvl2b05psipssyp1sm8h\n");
        let mut parsed = read(&text);
        parsed.info.registration_time = 1_795_471_037;
        let value: Value =
            serde_json::from_str(&narinfo(&parsed).to_json(&store_dir(&text).unwrap())).unwrap();
        // The hash as `nix path-info --json` of the same path gives it.
        let hash = "sha256-eqsuWO0fwfCRyepJxN5eQKTpC0+pRybB60qNeKZU+Rk=";
        let expected = json!({
            "version": 3,
            "storeDir": "/opt/nix/store",
            "path": "mk63lx34wyfrpp8m5djk37055jzcwsnb-self",
            "narHash": hash,
            "narSize": 224,
            "references": ["l6f9lha26wbf7284mncciham13hnkxdm-dep", "mk63lx34wyfrpp8m5djk37055jzcwsnb-self"],
            "ca": {"method": "nar", "hash": "sha256-EFUdrtf6Rn0LWIJufrmg8q99aT3jGfLvd1//zaJEufY="},
            "deriver": "z19ssnaf249kixin0l28c3m6cdglg43g-self.drv",
            "registrationTime": 1_795_471_037,
            "ultimate": false,
            "signatures": [{
                "keyName": "test-1",
                "sig": "r7C4WfXv5M+1bc834iT5E/VyjfZ7D/M8jxlxa2ZbAmkcf/VJvY+Ff6wJzliHAFKp2QOjrh+JOoOmEhyd1Y2sCg==",
            }],
            "url": "nar/06grajk7i3aaxg0jcix99w5yk920bvgc8jgar68z1h8zxmc2xavs.nar",
            "compression": "none",
            "downloadHash": hash,
            "downloadSize": 224,
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn content_addresses_in_json() {
        let hash = "sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        let sri = hash.replacen(':', "-", 1);
        for (prefix, method) in
            [("text:", "text"), ("fixed:", "flat"), ("fixed:r:", "nar"), ("fixed:git:", "git")]
        {
            let expected = json!({ "method": method, "hash": sri });
            assert_eq!(content_address_json(&format!("{prefix}{hash}")), Some(expected));
        }
        let sha1 = content_address_json("fixed:git:sha1:143xibwh31h9bvxzalr0sjvbbvpa6ffs").unwrap();
        assert_eq!(sha1["hash"], "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk=");
        for text in ["", "fixed:", "other:r:sha256:00", "fixed:r:sha256:00", "fixed:r:sha3:00"] {
            assert_eq!(content_address_json(text), None, "{text}");
        }
    }

    #[test]
    fn lenient_as_nix_is() {
        let dep = "l6f9lha26wbf7284mncciham13hnkxdm-dep";
        let minimal = format!(
            "NarSize: 120\nFuture: thing\nNarHash: {}\nReferences:  {dep}  {dep} \nStorePath: /s/{dep}\n\
            Deriver: unknown-deriver\nURL: x\n",
            Sha256::of(b"").to_sri(),
        );
        let parsed = read(&minimal);
        assert_eq!(parsed.compression, "bzip2");
        assert_eq!(parsed.info.references, [StorePath::from_basename(dep).unwrap()]);
        assert_eq!((parsed.info.deriver, parsed.info.ca, parsed.file_hash), (None, None, None));
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        let dir = store_dir(SELF).unwrap();
        let error = |from: &str, to: &str| {
            assert!(SELF.contains(from), "{from}");
            parse(&dir, &SELF.replacen(from, to, 1)).unwrap_err()
        };
        use NarInfoError::*;
        assert_eq!(error("URL: ", "\nURL: "), NoColon { line: 2 });
        assert_eq!(error("URL: ", "URL"), NoColon { line: 2 });
        assert_eq!(
            error("References: ", "References:\nX: "),
            NoBlank { line: 8, field: "References".to_owned() }
        );
        assert_eq!(error("Cg==\n", "Cg=="), NoNewline { line: 10 });
        assert!(matches!(error("/opt/nix/store/", "/nix/store/"), Path { line: 1, .. }));
        assert!(matches!(error("-self\n", "-self\r\n"), Path { line: 1, .. }));
        assert!(matches!(error("Deriver: ", "Deriver: /nix/store/"), Path { line: 9, .. }));
        assert!(matches!(
            error("Deriver: z19ssnaf249kixin0l28c3m6cdglg43g-self.drv", "Deriver: "),
            Path { line: 9, .. }
        ));
        assert!(matches!(error("NarHash: sha256:0", "NarHash: sha256:"), Hash { line: 6, .. }));
        assert!(matches!(error("NarSize: 224", "NarSize: -1"), Size { line: 7, .. }));
        assert_eq!(error("Deriver: ", "References: "), Twice { line: 9, field: "References" });
        for (from, field) in [
            ("StorePath: ", "StorePath"),
            ("URL: ", "URL"),
            ("NarHash: ", "NarHash"),
            ("NarSize: ", "NarSize"),
        ] {
            assert_eq!(error(from, "X: "), Missing(field));
        }
        assert_eq!(error("NarSize: 224", "NarSize: 0"), Missing("NarSize"));
        assert_eq!(parse(&dir, ""), Err(Missing("StorePath")));
        assert_eq!(error("NarSize: 224", "NarSize: x").to_string(), "line 7: “x” is not a number of bytes");
    }

    #[test]
    fn added_signatures_come_after_those_there() {
        let new = ["a:1".to_owned(), "b:2".to_owned()];
        let added = add_signatures(&format!("{SELF}CA: text:x\n"), &new);
        assert_eq!(added, format!("{SELF}Sig: a:1\nSig: b:2\nCA: text:x\n"));
        assert_eq!(add_signatures("URL: x\nCA: y\n", &new), "URL: x\nSig: a:1\nSig: b:2\nCA: y\n");
        assert_eq!(add_signatures("URL: x\n", &new), "URL: x\nSig: a:1\nSig: b:2\n");
        assert_eq!(add_signatures(SELF, &[]), SELF);
    }

    fn path() -> impl Strategy<Value = StorePath> {
        (any::<[u8; 20]>(), "[a-z0-9+_?=-]{1,30}").prop_map(|(hash, name)| {
            StorePath::from_basename(&format!("{}-{name}", crate::formats::base32::encode(&hash))).unwrap()
        })
    }

    proptest! {
        #[test]
        fn round_trip(
            path in path(),
            nar_hash: [u8; 32],
            nar_size in 1..=u64::MAX,
            references in proptest::collection::btree_set(path(), 0..5),
            deriver in proptest::option::of(path()),
            signatures in proptest::collection::vec("[a-z]:[A-Z]{8}", 0..3),
            ca in proptest::option::of("[a-z:]{1,20}"),
            file_size: Option<u64>,
        ) {
            let references = references.into_iter().collect();
            let nar_hash = Sha256(nar_hash);
            let info = PathInfo { path, nar_hash, nar_size, references, deriver, signatures, ca, registration_time: 0 };
            let file_hash = file_size.map(|_| nar_hash);
            let (url, compression) = ("nar/x.nar".to_owned(), "none".to_owned());
            let parsed = ParsedNarInfo { info, url, compression, file_hash, file_size };
            let dir = StoreDir::new("/nix/store").unwrap();
            prop_assert_eq!(parse(&dir, &render(&dir, &parsed)), Ok(parsed));
        }

        #[test]
        fn never_panics(text: String, at: prop::sample::Index, insert in "[\n:= \\PC]{0,3}") {
            let dir = store_dir(SELF).unwrap();
            let _ = (parse(&dir, &text), store_dir(&text), add_signatures(&text, &["a:b".to_owned()]));
            let mut changed = SELF.to_owned();
            changed.insert_str(at.index(SELF.len()), &insert);
            let _ = parse(&dir, &changed);
        }
    }
}
