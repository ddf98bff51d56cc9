//! An error as people read it: in one line, with what caused it.

use std::error::Error;

/// The error with its causes, each once: some messages hold their cause's, and some causes repeat what they
/// are the cause of.
pub fn with_causes(error: &dyn Error) -> String {
    let mut last = error.to_string();
    let mut text = last.clone();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) && !more.contains(&last) {
            text.push_str(": ");
            text.push_str(&more);
            last = more;
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Told(&'static str, #[source] Option<Box<Told>>);

    fn told(messages: &[&'static str]) -> String {
        let wrap = |cause: Option<Box<Told>>, message: &&'static str| Some(Box::new(Told(message, cause)));
        with_causes(&*messages.iter().rev().fold(None, wrap).expect("there is one"))
    }

    #[test]
    fn causes_follow_in_one_line() {
        assert_eq!(told(&["cannot start"]), "cannot start");
        assert_eq!(
            told(&["no root", "cannot use /x", "no such file"]),
            "no root: cannot use /x: no such file"
        );
    }

    #[test]
    fn what_a_message_holds_already_is_not_told_again() {
        assert_eq!(told(&["cannot read /x: no such file", "no such file"]), "cannot read /x: no such file");
    }

    /// SQLite's errors are told as `text`, caused by `Error code N: text`.
    #[test]
    fn a_cause_that_repeats_is_left_out() {
        let messages =
            ["the database cannot be read", "file is no database", "Error 26: file is no database"];
        assert_eq!(told(&messages), "the database cannot be read: file is no database");
    }
}
