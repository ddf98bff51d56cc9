//! Any bytes as a NAR: what is accepted is exactly what is written for it.
#![no_main]

use harmonia::formats::nar::{self, Event, Parser};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some(written) = rewrite(data) {
        assert!(written == data, "a NAR was accepted that Nix would not write");
    }
});

/// Parses a NAR and writes it again; `None` where it is refused.
fn rewrite(data: &[u8]) -> Option<Vec<u8>> {
    let mut parser = Parser::new(data);
    let mut out = Vec::new();
    // For each open directory, whether an entry of it waits to be closed.
    let mut open: Vec<bool> = Vec::new();
    let mut contents = Vec::new();
    nar::begin(&mut out);
    while let Some(event) = parser.next_event().ok()? {
        if matches!(event, Event::Entry { .. } | Event::EndDirectory)
            && open.last_mut().is_some_and(std::mem::take)
        {
            nar::close_entry(&mut out);
        }
        match event {
            Event::File { executable, size, offset } => {
                nar::open_file(&mut out, executable, size);
                assert_eq!(out.len() as u64, offset);
                contents.clear();
                parser.contents(&mut contents).ok()?;
                out.extend_from_slice(&contents);
                nar::close_file(&mut out, size);
            }
            Event::Symlink { target } => nar::symlink(&mut out, &target),
            Event::Directory => {
                nar::open_directory(&mut out);
                open.push(false);
            }
            Event::Entry { name } => {
                nar::open_entry(&mut out, &name);
                *open.last_mut()? = true;
            }
            Event::EndDirectory => {
                nar::close_directory(&mut out);
                open.pop();
            }
        }
    }
    Some(out)
}
