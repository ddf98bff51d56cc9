//! Realisations, read from whichever of Nix's tables the database has.
//!
//! Nix ≤ 2.34 keeps `Realisations`, by a hash of the derivation; Nix ≥ 2.35 keeps `BuildTraceV3`, by the
//! derivation's basename; a database may have both, one or none. What the newer form asks for can be found in
//! the older tables for a derivation that is still valid. The other way there is nothing to go by: the hash is
//! of the derivation's contents, which are not in the database.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use super::rows::{first, has_table, optional_text, text};
use crate::formats::hash::Sha256;
use crate::formats::realisation::{OutputId, Realisation};
use crate::formats::store_path::{StoreDir, StorePath};

/// What `id` became. Rows that are malformed are as good as none.
pub(super) fn find(
    connection: &Connection,
    dir: &StoreDir,
    id: &OutputId,
) -> rusqlite::Result<Option<Realisation>> {
    match id {
        OutputId::Hashed { drv_hash, output } => {
            if !has_realisations(connection)? {
                return Ok(None);
            }
            hashed(connection, dir, id, drv_hash, output)
        }
        OutputId::Trace { drv, output } => {
            let drv_path = dir.display(drv).to_string();
            if has_table(connection, "BuildTraceV3", &["drvPath", "outputName", "outputPath", "signatures"])?
                && let Some((path, signatures)) = trace(connection, drv.as_str(), &drv_path, output)?
            {
                return Ok(realisation(dir, id, &path, signatures.as_deref(), BTreeMap::new()));
            }
            if !has_realisations(connection)? {
                return Ok(None);
            }
            // The older signatures are of another text, and of no use here.
            let path = output_of_valid_derivation(connection, &drv_path, output)?;
            Ok(path.and_then(|path| realisation(dir, id, &path, None, BTreeMap::new())))
        }
    }
}

fn has_realisations(connection: &Connection) -> rusqlite::Result<bool> {
    has_table(connection, "Realisations", &["id", "drvPath", "outputName", "outputPath", "signatures"])
}

fn hashed(
    connection: &Connection,
    dir: &StoreDir,
    id: &OutputId,
    drv_hash: &Sha256,
    output: &str,
) -> rusqlite::Result<Option<Realisation>> {
    const SQL: &str = "SELECT r.id, v.path, r.signatures FROM Realisations r \
                       JOIN ValidPaths v ON r.outputPath = v.id WHERE r.drvPath = ?1 AND r.outputName = ?2";
    let key = format!("sha256:{}", drv_hash.to_hex());
    let found = first(connection.prepare_cached(SQL)?, params![key, output], |row| {
        Ok((row.get::<_, i64>(0)?, text(row, 1)?, optional_text(row, 2)?))
    })?;
    let Some((row, path, signatures)) = found else { return Ok(None) };
    let Some(dependencies) = dependencies(connection, dir, row)? else { return Ok(None) };
    Ok(realisation(dir, id, &path, signatures.as_deref(), dependencies))
}

/// What a realisation depends on; `None` where a row is malformed, as the whole would then be signed without it.
fn dependencies(
    connection: &Connection,
    dir: &StoreDir,
    row: i64,
) -> rusqlite::Result<Option<BTreeMap<OutputId, StorePath>>> {
    if !has_table(connection, "RealisationsRefs", &["referrer", "realisationReference"])? {
        return Ok(Some(BTreeMap::new()));
    }
    const SQL: &str = "SELECT d.drvPath || '!' || d.outputName, v.path FROM RealisationsRefs f \
                       JOIN Realisations d ON f.realisationReference = d.id \
                       JOIN ValidPaths v ON d.outputPath = v.id WHERE f.referrer = ?1";
    let mut statement = connection.prepare_cached(SQL)?;
    let pairs = statement.query_map([row], |row| Ok((text(row, 0)?, text(row, 1)?)))?;
    let mut dependencies = BTreeMap::new();
    for pair in pairs {
        let (id, path) = pair?;
        let (Some(id), Ok(path)) = (OutputId::parse_hashed(&id), dir.parse(&path)) else { return Ok(None) };
        dependencies.insert(id, path);
    }
    Ok(Some(dependencies))
}

/// Nix writes the derivation's basename; a full path is taken as well, as in every other table.
fn trace(
    connection: &Connection,
    basename: &str,
    full: &str,
    output: &str,
) -> rusqlite::Result<Option<(String, Option<String>)>> {
    const SQL: &str = "SELECT outputPath, signatures FROM BuildTraceV3 \
                       WHERE drvPath IN (?1, ?2) AND outputName = ?3 ORDER BY rowid DESC LIMIT 1";
    first(connection.prepare_cached(SQL)?, params![basename, full, output], |row| {
        Ok((text(row, 0)?, optional_text(row, 1)?))
    })
}

/// The output that was registered for a derivation which is still valid, if it is one that was realised.
fn output_of_valid_derivation(
    connection: &Connection,
    drv_path: &str,
    output: &str,
) -> rusqlite::Result<Option<String>> {
    const SQL: &str = "SELECT o.path FROM ValidPaths drv JOIN DerivationOutputs d ON d.drv = drv.id \
                       JOIN ValidPaths o ON o.path = d.path \
                       JOIN Realisations r ON r.outputPath = o.id AND r.outputName = d.id \
                       WHERE drv.path = ?1 AND d.id = ?2 LIMIT 1";
    first(connection.prepare_cached(SQL)?, params![drv_path, output], |row| text(row, 0))
}

fn realisation(
    dir: &StoreDir,
    id: &OutputId,
    path: &str,
    signatures: Option<&str>,
    dependencies: BTreeMap<OutputId, StorePath>,
) -> Option<Realisation> {
    // Nix writes a full path; a basename is what the document has.
    let out_path = dir.parse(path).or_else(|_| StorePath::from_basename(path)).ok()?;
    let signatures = signatures.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    Some(Realisation { id: id.clone(), out_path, signatures, dependencies })
}
