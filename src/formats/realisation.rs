//! Realisations: which store path an output of a content-addressed derivation became (a “build trace”).
//!
//! Nix changed both the name and the form in 2.35. Clients up to 2.34 ask for `realisations/<id>.doi`, where the
//! id has a hash of the derivation; later ones for `build-trace-v2/<drv>/<output>.doi`.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::hash::Sha256;
use super::narinfo::{merge_signatures, signature_json};
use super::signature::SecretKey;
use super::store_path::{StorePath, is_name};

/// The output of a derivation that a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OutputId {
    /// Of Nix ≤ 2.34. `Display` is `sha256:<64 hexadecimal digits>!<output>`.
    Hashed {
        /// The hash of the derivation modulo its fixed outputs.
        drv_hash: Sha256,
        /// The output's name.
        output: String,
    },
    /// Of Nix ≥ 2.35. `Display` is `<basename>^<output>`.
    Trace {
        /// The resolved derivation.
        drv: StorePath,
        /// The output's name.
        output: String,
    },
}

impl OutputId {
    /// Reads the `sha256:<digits>!<output>` of `realisations/…`, decoded from its URL. The digits may be of any
    /// encoding that Nix reads.
    pub fn parse_hashed(id: &str) -> Option<Self> {
        let (drv_hash, output) = id.split_once('!')?;
        let drv_hash = Sha256::parse(drv_hash).ok()?;
        is_name(output).then(|| Self::Hashed { drv_hash, output: output.to_owned() })
    }

    /// Reads the derivation's basename and the output's name of `build-trace-v2/…/….doi`.
    pub fn parse_trace(drv: &str, output: &str) -> Option<Self> {
        let drv = StorePath::from_basename(drv).ok().filter(StorePath::is_derivation)?;
        is_name(output).then(|| Self::Trace { drv, output: output.to_owned() })
    }
}

impl fmt::Display for OutputId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hashed { drv_hash, output } => write!(f, "sha256:{}!{output}", drv_hash.to_hex()),
            Self::Trace { drv, output } => write!(f, "{drv}^{output}"),
        }
    }
}

/// What an output became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realisation {
    /// The output.
    pub id: OutputId,
    /// The path that it became.
    pub out_path: StorePath,
    /// Signatures, `name:base64` each.
    pub signatures: Vec<String>,
    /// The realisations that this one depends on, by id. Only the older form has them.
    pub dependencies: BTreeMap<OutputId, StorePath>,
}

impl Realisation {
    /// The text that the signatures sign: the JSON form, compact, keys sorted, without the signatures.
    pub fn fingerprint(&self) -> String {
        match &self.id {
            OutputId::Hashed { .. } => json(&self.hashed(None)),
            OutputId::Trace { drv, output } => json(&TraceFingerprint {
                key: TraceKey { drv_path: drv.as_str(), output_name: output },
                value: Trace { out_path: self.out_path.as_str(), signatures: None },
            }),
        }
    }

    /// The well-formed signatures that are there, then one of each key; none twice.
    pub fn sign_all(&self, keys: &[SecretKey]) -> Vec<String> {
        merge_signatures(&self.signatures, keys, &self.fingerprint())
    }

    /// The document that clients read, with `signatures` as [`Realisation::sign_all`] gives them: compact JSON,
    /// keys sorted. The newer form leaves out the id, which is in its URL.
    pub fn to_json(&self, signatures: &[String]) -> String {
        match &self.id {
            OutputId::Hashed { .. } => json(&self.hashed(Some(signatures))),
            OutputId::Trace { .. } => json(&Trace {
                out_path: self.out_path.as_str(),
                signatures: Some(signatures.iter().filter_map(|text| signature_json(text)).collect()),
            }),
        }
    }

    fn hashed<'a>(&'a self, signatures: Option<&'a [String]>) -> Hashed<'a> {
        Hashed {
            dependent_realisations: self
                .dependencies
                .iter()
                .map(|(id, path)| (id.to_string(), path.as_str()))
                .collect(),
            id: self.id.to_string(),
            out_path: self.out_path.as_str(),
            signatures,
        }
    }
}

// Fields are declared in the order of their JSON names: signatures are over the sorted text.

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Hashed<'a> {
    dependent_realisations: BTreeMap<String, &'a str>,
    id: String,
    out_path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    signatures: Option<&'a [String]>,
}

#[derive(Serialize)]
struct TraceFingerprint<'a> {
    key: TraceKey<'a>,
    value: Trace<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TraceKey<'a> {
    drv_path: &'a str,
    output_name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Trace<'a> {
    out_path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    signatures: Option<Vec<Value>>,
}

fn json(value: &impl Serialize) -> String {
    // Only maps with keys that are no strings and failing `Serialize` implementations can fail here.
    serde_json::to_string(value).expect("strings and maps of strings are always JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nix 2.8 built, signed (`secret-key-files`) and copied these: `two` depends on `one`.
    const ONE: &str = "{\"dependentRealisations\":{},\
        \"id\":\"sha256:c42c9ba98b429c28c549dfdb28a201d6ef251f43aeb1818c9f0939ad9fabe315!out\",\
        \"outPath\":\"d7pbididb23c5z48qsrf7y636cahd26k-one\",\"signatures\":[\"test-1:\
        Jjpz4fHGbpeDFhokYKp3qgQWZk6INvt7XXQLtByJiLAsK1WuoDjwqHzlCRrUuQPxjeSPoCio+klKip8NtnBeAg==\"]}";
    const TWO: &str = "{\"dependentRealisations\":{\
        \"sha256:c42c9ba98b429c28c549dfdb28a201d6ef251f43aeb1818c9f0939ad9fabe315!out\":\
        \"d7pbididb23c5z48qsrf7y636cahd26k-one\"},\
        \"id\":\"sha256:6853dc35c3b912d77bc4ae72900549cab213b7cea08ba3d2f6cb1b9290433ded!out\",\
        \"outPath\":\"hq19yx1fwnv7hfz4j3pkch72f70bzkvj-two\",\"signatures\":[\"test-1:\
        ai1ZUDpAbcRnSnMuE+69tMlVm56FRHlbOdom1Cc1ju8Uvpd0InSBK0GUf4uH+3pA6sPWIFYo9pEkPRE0mNXvBQ==\"]}";
    const SECRET: &str =
        "test-1:s0v16/BM4lai2VuGQ8CB4ScKlAr1jwrSLM4uJcP3ZwYXcnQ6Q7/t3MQaMIbcdYIf+Fcob4Yk9eFcGbF7ZH9rgw==";

    fn path(basename: &str) -> StorePath {
        StorePath::from_basename(basename).unwrap()
    }

    fn id(text: &str) -> OutputId {
        OutputId::parse_hashed(text).unwrap()
    }

    #[test]
    fn the_same_text_and_signatures_as_nix() {
        let one = Realisation {
            id: id("sha256:c42c9ba98b429c28c549dfdb28a201d6ef251f43aeb1818c9f0939ad9fabe315!out"),
            out_path: path("d7pbididb23c5z48qsrf7y636cahd26k-one"),
            signatures: Vec::new(),
            dependencies: BTreeMap::new(),
        };
        let two = Realisation {
            id: id("sha256:6853dc35c3b912d77bc4ae72900549cab213b7cea08ba3d2f6cb1b9290433ded!out"),
            out_path: path("hq19yx1fwnv7hfz4j3pkch72f70bzkvj-two"),
            dependencies: BTreeMap::from([(one.id.clone(), one.out_path.clone())]),
            ..one.clone()
        };
        let key = SecretKey::parse(SECRET).unwrap();
        for (realisation, text) in [(one, ONE), (two, TWO)] {
            let signatures = realisation.sign_all(std::slice::from_ref(&key));
            assert_eq!(realisation.to_json(&signatures), text);
            let signed_before = Realisation { signatures: signatures.clone(), ..realisation };
            assert_eq!(signed_before.sign_all(std::slice::from_ref(&key)), signatures);
        }
    }

    /// Against the test data of Nix 2.36: `with-signature-fingerprint.txt` and `unkeyed-with-signature.json`.
    #[test]
    fn the_newer_form() {
        let realisation = Realisation {
            id: OutputId::parse_trace("g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-bar.drv", "foo").unwrap(),
            out_path: path("g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo.drv"),
            signatures: Vec::new(),
            dependencies: BTreeMap::new(),
        };
        assert_eq!(
            realisation.fingerprint(),
            "{\"key\":{\"drvPath\":\"g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-bar.drv\",\"outputName\":\"foo\"},\
            \"value\":{\"outPath\":\"g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo.drv\"}}"
        );
        assert_eq!(
            realisation.to_json(&["asdf:AAAA".to_owned()]),
            "{\"outPath\":\"g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo.drv\",\
            \"signatures\":[{\"keyName\":\"asdf\",\"sig\":\"AAAA\"}]}"
        );
        let key = SecretKey::parse(SECRET).unwrap();
        let signature = key.sign(realisation.fingerprint().as_bytes()).to_string();
        assert_eq!(realisation.sign_all(&[key]), [signature]);
    }

    #[test]
    fn ids() {
        let hex = "c42c9ba98b429c28c549dfdb28a201d6ef251f43aeb1818c9f0939ad9fabe315";
        let read = id(&format!("sha256:{hex}!dev"));
        assert_eq!(read.to_string(), format!("sha256:{hex}!dev"));
        let OutputId::Hashed { drv_hash, .. } = &read else { panic!("a hashed id") };
        assert_eq!(id(&format!("{drv_hash}!dev")), read);
        for bad in [
            "",
            "!out",
            "sha256:00!out",
            &format!("sha256:{hex}"),
            &format!("sha256:{hex}!"),
            &format!("{hex}!out"),
        ] {
            assert_eq!(OutputId::parse_hashed(bad), None, "{bad}");
        }
        assert_eq!(OutputId::parse_hashed(&format!("sha256:{hex}!a/b")), None);
        let drv = "g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-bar.drv";
        assert_eq!(OutputId::parse_trace(drv, "out").unwrap().to_string(), format!("{drv}^out"));
        for (drv, output) in [(drv, ""), (drv, "a/b"), (drv, ".."), (&drv[..35], "out"), ("bar.drv", "out")] {
            assert_eq!(OutputId::parse_trace(drv, output), None, "{drv} {output}");
        }
    }
}
