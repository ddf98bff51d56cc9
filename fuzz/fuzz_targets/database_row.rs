//! Any texts as a database row's columns and references: served well formed, or not at all.
#![no_main]

use harmonia::formats::narinfo;
use harmonia::formats::store_path::StoreDir;
use harmonia::store::rows::Row;
use harmonia::store::served::Served;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let dir = StoreDir::new("/nix/store").expect("it is one");
    let mut columns = text.split('\0').map(str::to_owned);
    let mut column = || columns.next().filter(|text| !text.is_empty());
    let row = Row {
        path: column().unwrap_or_default(),
        hash: column().unwrap_or_default(),
        deriver: column(),
        sigs: column(),
        ca: column(),
        ..Row::default()
    };
    let references: Vec<String> = columns.collect();
    if let Ok(info) = row.interpret(&dir, &references, 96) {
        let served = Served::new(&dir, info, &[]);
        let text = std::str::from_utf8(&served.narinfo).expect("narinfos are text");
        let parsed = narinfo::parse(&dir, text).expect("clients can read it");
        assert_eq!(parsed.info.path, served.info.path);
        assert_eq!(parsed.info.references, served.info.references);
        assert_eq!(parsed.info.signatures, served.signatures);
        assert_eq!(parsed.info.ca, served.info.ca);
    }
});
