//! `harmonia doctor`, of what a cache sends: narinfos and NARs that are not as they should be, and how they come.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use support::doctor::{Case, has};
use support::fake::{Fake, Sent};
use support::{Response, lossy};

#[test]
fn compressed_nars_are_checked_too() {
    for (compression, cold) in [("zstd", "stream"), ("xz", "stream"), ("xz", "identity")] {
        let lines = [format!("compression = {compression:?}"), format!("compression_cold = {cold:?}")];
        let case = Case::with(|settings| lines.iter().fold(settings, |settings, line| settings.line(line)));
        let told = case.client_of(&case.server.url()).json(&[&case.server.url()]);
        assert_eq!((told.status, told.unseen().as_str()), (0, "[]"), "{:#}", told.json);
        assert!(told.cache()["well"].to_string().contains("can be resumed"), "{:#}", told.json);
    }
}

fn altered(mut response: Response, from: &str, to: &str) -> Response {
    let text = lossy(&response.body);
    assert!(text.contains(from), "no “{from}” in {text}");
    response.body = text.replacen(from, to, 1).into_bytes();
    response
}

#[test]
fn a_narinfo_that_was_changed_is_not_taken() {
    let case = Case::new();
    let told = case.through(|request, response| {
        Sent::Whole(if request.is_narinfo() {
            altered(response, "NarSize: 3", "NarSize: 4")
        } else {
            response
        })
    });
    assert!(told.codes().contains(&"bad-signature"), "{:#}", told.json);
    has(&told.cache()["findings"][0], "message", &[&case.path, "cache.example-1", "narinfo was changed"]);

    let told = case.through(|request, response| {
        Sent::Whole(if request.is_narinfo() {
            altered(response, "References: ", "References:")
        } else {
            response
        })
    });
    has(told.only("bad-nar-info"), "message", &[&case.path, "References"]);
}

#[test]
fn a_nar_that_is_not_its_hashs_is_told() {
    let case = Case::new();
    let told = case.through(|request, mut response| {
        if request.is_nar() && response.status == 200 {
            response.body[200_000] ^= 1;
        }
        Sent::Whole(response)
    });
    let finding = told.only("wrong-bytes");
    has(finding, "message", &[&case.path, "hash", "the narinfo says  sha256:", "what came has     sha256:"]);
    has(finding, "remedy", &["nix-store --verify"]);
}

#[test]
fn a_nar_that_cannot_be_decoded_is_told() {
    let case = Case::new();
    let told = case.through(|request, response| {
        let changes =
            [("Compression: none", "Compression: xz"), ("FileHash", "X-Hash"), ("FileSize", "X-Size")];
        let change = |response, (from, to): (&str, &str)| altered(response, from, to);
        Sent::Whole(if request.is_narinfo() { changes.into_iter().fold(response, change) } else { response })
    });
    has(told.only("wrong-bytes"), "message", &["cannot be decoded"]);
}

#[test]
fn a_transfer_that_is_cut_is_told_with_how_far_it_came() {
    let case = Case::new();
    let told = case.through(|request, response| match request.is_nar() {
        true => Sent::Cut(response, 100_000),
        false => Sent::Whole(response),
    });
    let finding = told.only("cut");
    assert_eq!(finding["received"], 100_000);
    has(finding, "message", &[&case.path, "98 KiB of 293 KiB"]);
}

#[test]
fn a_slow_transfer_is_measured() {
    let case = Case::new();
    // 300 KB at 50 KB a second at the most.
    let told = case.through(|request, response| match request.is_nar() {
        true => Sent::Dripping(response, 1000),
        false => Sent::Whole(response),
    });
    let finding = told.only("slow");
    assert!(
        finding["received"].as_u64() > Some(0) && finding["milliseconds"].as_u64() >= Some(2000),
        "{finding}"
    );
}

#[test]
fn what_takes_too_long_is_left_and_said() {
    let case = Case::new();
    let fake = Fake::of(case.server.address, |request, response| match request.is_nar() {
        true => Sent::Dripping(response, 1000),
        false => Sent::Whole(response),
    });
    let told = case.client_of(&fake.url()).json(&["--seconds", "3", &fake.url()]);
    assert!(told.unseen().contains("its hash was not checked (more time: --seconds"), "{:#}", told.json);
}

#[test]
fn transfers_that_cannot_be_resumed_are_told() {
    let case = Case::new();
    let without = |name: &'static str| {
        move |mut response: Response| {
            response.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
            response
        }
    };
    let told = case.through(move |request, response| {
        Sent::Whole(if request.is_nar() { without("accept-ranges")(response) } else { response })
    });
    has(told.only("not-resumable"), "message", &["Accept-Ranges"]);

    let told = case.through(|request, mut response| {
        if request.is_nar() && response.status == 206 {
            response.status = 200;
        }
        Sent::Whole(response)
    });
    has(told.only("not-resumable"), "message", &["Range: bytes=16384-32767", "answered 200"]);

    let told = case.through(|request, mut response| {
        if request.is_nar() && response.status == 206 {
            response.body[0] ^= 1;
        }
        Sent::Whole(response)
    });
    has(told.only("not-resumable"), "message", &["other bytes"]);

    let told = case.through(|request, mut response| {
        let accepts =
            request.lines.iter().any(|line| line.to_ascii_lowercase().starts_with("accept-encoding:"));
        if request.is_nar() && accepts {
            response.headers.push(("Content-Encoding".into(), "gzip".into()));
        }
        Sent::Whole(response)
    });
    has(told.only("encoded"), "message", &["Content-Encoding: gzip", "begins anew"]);
    assert!(told.cache()["well"].to_string().contains(&case.path), "the NAR was checked all the same");

    // The server itself does it where it is told to.
    let case = Case::with(|settings| settings.line("transport_compression = true"));
    let told = case.client_of(&case.server.url()).json(&[&case.server.url()]);
    has(
        told.only("encoded"),
        "remedy",
        &["gzip off", "`transport_compression` in the server's own settings"],
    );
}

#[test]
fn an_answer_that_is_an_error_is_told() {
    let case = Case::new();
    let told = case.through(|request, mut response| {
        if request.is_nar() {
            response.status = 502;
        }
        Sent::Whole(response)
    });
    let finding = told.only("bad-answer");
    assert_eq!(finding["status"], 502);
    has(finding, "message", &["nar/"]);
}
