//! Whether a client takes what a cache signs. Pure: narinfos and keys in, findings out.

use super::finding::Trust;
use crate::formats::narinfo::{self, ParsedNarInfo};
use crate::formats::signature::{PublicKey, Signature};
use crate::formats::store_path::StoreDir;

/// What a client makes of a narinfo.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The key of this name signed it and is trusted.
    Trusted(String),
    /// It needs no signature and has none.
    ContentAddressed,
    /// The client does not take it, or will not take others of the cache.
    Refused(Trust),
}

/// The keys that a text shows, such as a cache's own page: all that look like keys, whoever's they are.
pub fn keys_in(text: &str) -> Vec<PublicKey> {
    let is_part = |char: char| char.is_ascii_alphanumeric() || "+/=:._-".contains(char);
    let mut keys: Vec<PublicKey> = Vec::new();
    for key in text.split(|char| !is_part(char)).filter_map(|word| PublicKey::parse(word).ok()) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// What a client that trusts the keys `trusted` makes of a narinfo of a cache that shows the keys `shown`.
///
/// A path may have signatures of others, such as those it was fetched with. So where the cache shows which keys are its
/// own, and they signed this, one of them must be trusted: what the cache alone has signed is refused otherwise.
pub fn judge(narinfo: &ParsedNarInfo, dir: &StoreDir, trusted: &[PublicKey], shown: &[PublicKey]) -> Verdict {
    let message = narinfo::fingerprint(dir, &narinfo.info);
    let message = message.as_bytes();
    let signatures: Vec<Signature> =
        narinfo.info.signatures.iter().filter_map(|text| Signature::parse(text).ok()).collect();
    let own: Vec<&PublicKey> = shown
        .iter()
        .filter(|key| signatures.iter().any(|signature| key.verify(message, signature)))
        .collect();
    let path = dir.display(&narinfo.info.path).to_string();
    if signatures.is_empty() {
        return match narinfo.info.ca {
            Some(_) => Verdict::ContentAddressed,
            None => Verdict::Refused(Trust::Unsigned { path }),
        };
    }
    let verifies = |key: &&PublicKey| signatures.iter().any(|signature| key.verify(message, signature));
    match own.is_empty() {
        false => match trusted.iter().find(|key| own.contains(key)) {
            Some(key) => Verdict::Trusted(key.name().to_owned()),
            None => Verdict::Refused(not_own(&own, trusted)),
        },
        true => match trusted.iter().find(verifies) {
            Some(key) => Verdict::Trusted(key.name().to_owned()),
            None => Verdict::Refused(not_known(&signatures, message, path, trusted, shown)),
        },
    }
}

/// What is wrong with the keys that a cache shows for a client that trusts the keys `trusted`, where nothing that they
/// signed could be looked at; nothing where one is trusted, or none is shown.
pub fn of_shown(shown: &[PublicKey], trusted: &[PublicKey]) -> Option<Trust> {
    let is_well = shown.is_empty() || shown.iter().any(|key| trusted.contains(key));
    (!is_well).then(|| not_own(&shown.iter().collect::<Vec<_>>(), trusted))
}

/// Of the cache's own keys, none is trusted.
fn not_own(own: &[&PublicKey], trusted: &[PublicKey]) -> Trust {
    for key in own {
        if let Some(other) = trusted.iter().find(|other| other.is_same_key(key)) {
            let (signed_as, cache, client) = (key.name().to_owned(), key.to_string(), other.to_string());
            return Trust::KeyName { signed_as, cache, client };
        }
        if let Some(other) = trusted.iter().find(|other| other.name() == key.name()) {
            return Trust::KeyBytes {
                name: key.name().to_owned(),
                cache: Some(key.to_string()),
                client: other.to_string(),
            };
        }
    }
    not_trusted(own.iter().map(ToString::to_string).collect(), trusted)
}

/// The cache does not say which keys are its own, or they did not sign this; no trusted key did either.
fn not_known(
    signatures: &[Signature],
    message: &[u8],
    path: String,
    trusted: &[PublicKey],
    shown: &[PublicKey],
) -> Trust {
    for signature in signatures {
        let name = signature.name();
        if let Some(key) = trusted.iter().find(|key| key.made(message, signature)) {
            return Trust::KeyName {
                signed_as: name.to_owned(),
                cache: key.renamed(name).to_string(),
                client: key.to_string(),
            };
        }
        let of_cache = shown.iter().find(|key| key.name() == name);
        let of_client = trusted.iter().find(|key| key.name() == name);
        match (of_cache, of_client) {
            (Some(cache), Some(client)) if cache != client => {
                return Trust::KeyBytes {
                    name: name.to_owned(),
                    cache: Some(cache.to_string()),
                    client: client.to_string(),
                };
            }
            (Some(_), _) => return Trust::BadSignature { path, name: name.to_owned() },
            (None, Some(client)) => {
                return Trust::KeyBytes { name: name.to_owned(), cache: None, client: client.to_string() };
            }
            (None, None) => {}
        }
    }
    not_trusted(signatures.iter().map(|signature| format!("{}:…", signature.name())).collect(), trusted)
}

fn not_trusted(cache: Vec<String>, trusted: &[PublicKey]) -> Trust {
    Trust::KeyNotTrusted { cache, client: trusted.iter().map(ToString::to_string).collect(), ignored: false }
}

/// What is to be said of all narinfos that were looked at, each kind of trouble once.
///
/// Where the cache does not show its keys, a signature that does not verify may be of another key of the same name or
/// of another content; if the key signed another narinfo, it is the content.
pub fn sum_up(verdicts: Vec<(String, Verdict)>) -> Vec<Trust> {
    let is_good = |name: &str| {
        verdicts.iter().any(|(_, verdict)| matches!(verdict, Verdict::Trusted(good) if good == name))
    };
    let refused = verdicts.iter().filter_map(|(path, verdict)| match verdict {
        Verdict::Refused(Trust::KeyBytes { name, cache: None, .. }) if is_good(name) => {
            Some(Trust::BadSignature { path: path.clone(), name: name.clone() })
        }
        Verdict::Refused(trust) => Some(trust.clone()),
        _ => None,
    });
    let mut findings: Vec<Trust> = Vec::new();
    for trust in refused {
        let kind = std::mem::discriminant(&trust);
        if !findings.iter().any(|finding| std::mem::discriminant(finding) == kind) {
            findings.push(trust);
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::signature::SecretKey;

    const PATH: &str = "/nix/store/mk63lx34wyfrpp8m5djk37055jzcwsnb-self";

    fn dir() -> StoreDir {
        StoreDir::new("/nix/store").unwrap()
    }

    /// A narinfo that `keys` have signed.
    fn narinfo(keys: &[&SecretKey], more: &str) -> ParsedNarInfo {
        let hash = "06grajk7i3aaxg0jcix99w5yk920bvgc8jgar68z1h8zxmc2xavs";
        let text = format!(
            "StorePath: {PATH}\nURL: nar/x.nar\nNarHash: sha256:{hash}\nNarSize: 224\nReferences: \n{more}"
        );
        let parsed = narinfo::parse(&dir(), &text).unwrap();
        let fingerprint = narinfo::fingerprint(&dir(), &parsed.info);
        let signatures = keys.iter().map(|key| key.sign(fingerprint.as_bytes()).to_string());
        narinfo::parse(&dir(), &narinfo::add_signatures(&text, &signatures.collect::<Vec<_>>())).unwrap()
    }

    fn refused(narinfo: &ParsedNarInfo, trusted: &[PublicKey], shown: &[PublicKey]) -> Trust {
        match judge(narinfo, &dir(), trusted, shown) {
            Verdict::Refused(trust) => trust,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_trusted_key_is_found() {
        let (own, other) = (SecretKey::generate("own-1").unwrap(), SecretKey::generate("other-1").unwrap());
        let both = narinfo(&[&other, &own], "");
        let trusted = |key: &SecretKey| Verdict::Trusted(key.name().to_owned());
        assert_eq!(judge(&both, &dir(), &[own.public()], &[]), trusted(&own));
        assert_eq!(judge(&both, &dir(), &[own.public()], &[own.public()]), trusted(&own));
        assert_eq!(judge(&both, &dir(), &[other.public()], &[]), trusted(&other));
    }

    /// The path came from a cache whose key everybody trusts; what is built here has the cache's own key alone.
    #[test]
    fn a_signature_of_others_does_not_hide_that_the_caches_own_key_is_not_trusted() {
        let (own, other) = (SecretKey::generate("own-2").unwrap(), SecretKey::generate("other-1").unwrap());
        let both = narinfo(&[&other, &own], "");
        let expected = Trust::KeyNotTrusted {
            cache: vec![own.public().to_string()],
            client: vec![other.public().to_string()],
            ignored: false,
        };
        assert_eq!(refused(&both, &[other.public()], &[own.public()]), expected);
        assert!(expected.to_string().contains(&format!("signs with  {}\n", own.public())), "{expected}");
        assert!(expected.to_string().ends_with(&format!("trusts    {}", other.public())), "{expected}");
    }

    #[test]
    fn another_name_and_other_bytes_are_told_apart() {
        let (own, namesake) = (SecretKey::generate("own-1").unwrap(), SecretKey::generate("own-1").unwrap());
        let signed = narinfo(&[&own], "");
        let renamed = own.public().renamed("own-2");
        let name = Trust::KeyName {
            signed_as: "own-1".into(),
            cache: own.public().to_string(),
            client: renamed.to_string(),
        };
        assert_eq!(refused(&signed, std::slice::from_ref(&renamed), &[]), name, "known by its bytes alone");
        assert_eq!(refused(&signed, &[renamed], &[own.public()]), name);
        let bytes =
            |cache| Trust::KeyBytes { name: "own-1".into(), cache, client: namesake.public().to_string() };
        assert_eq!(
            refused(&signed, &[namesake.public()], &[own.public()]),
            bytes(Some(own.public().to_string()))
        );
        assert_eq!(refused(&signed, &[namesake.public()], &[]), bytes(None));
    }

    #[test]
    fn a_changed_narinfo_is_not_a_matter_of_keys() {
        let own = SecretKey::generate("own-1").unwrap();
        let mut changed = narinfo(&[&own], "");
        changed.info.nar_size += 1;
        let bad = Trust::BadSignature { path: PATH.into(), name: "own-1".into() };
        assert_eq!(refused(&changed, &[own.public()], &[own.public()]), bad);
        let verdicts = |good: bool| {
            let unknown = judge(&changed, &dir(), &[own.public()], &[]);
            let good = good.then(|| ("other".to_owned(), Verdict::Trusted("own-1".to_owned())));
            sum_up([(PATH.to_owned(), unknown)].into_iter().chain(good).collect())
        };
        assert_eq!(verdicts(true), [bad], "the key is right for another path");
        assert!(matches!(verdicts(false)[..], [Trust::KeyBytes { cache: None, .. }]));
    }

    #[test]
    fn unsigned_is_well_for_what_is_content_addressed() {
        let own = SecretKey::generate("own-1").unwrap();
        assert_eq!(refused(&narinfo(&[], ""), &[own.public()], &[]), Trust::Unsigned { path: PATH.into() });
        let ca = narinfo(&[], "CA: fixed:r:sha256:06grajk7i3aaxg0jcix99w5yk920bvgc8jgar68z1h8zxmc2xavs\n");
        assert_eq!(judge(&ca, &dir(), &[own.public()], &[]), Verdict::ContentAddressed);
    }

    #[test]
    fn keys_are_found_in_a_page() {
        let (one, two) =
            (SecretKey::generate("cache.example.org-1").unwrap(), SecretKey::generate("b").unwrap());
        let (one, two) = (one.public(), two.public());
        let page =
            format!("<pre>extra-trusted-public-keys = {one} {two}</pre><code>{one}</code> a:b http://x:5000");
        assert_eq!(keys_in(&page), [one, two]);
    }
}
