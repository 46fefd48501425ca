//! Translates the library's advice for users of the command: the library names its calls, the command has flags.

use crate::error::Error;

/// Calls and the equivalent flags; `{columns}` stands for the flag that selects columns.
const FLAGS: [(&str, &str); 7] = [
    (".columns([bytes(\"image\"), bytes(\"path\")])", "{columns}"),
    (".columns([..])", "{columns}"),
    (".columns()", "{columns}"),
    ("Csv::new().delimiter(..)", "--delimiter"),
    ("Dataset::open_with(urls, format)", "--format"),
    ("Dataset::open_with(urls, ImageFolder::new())", "--format images"),
    (".budget(..)", "--budget"),
];

/// Advice that only a program can follow.
const OF_PROGRAMS: [&str; 8] = [
    "; declare what stands for it: .optional() or .or(..)",
    "; name a column that exists, or give this one a default: .optional()",
    "; give the column a default: .optional()",
    ", or declare what stands for it: .optional() or .or(..)",
    "; raise it with .limits(..) if such images are expected",
    "; raise ImageLimits::max_bytes with .limits(..) if such images are expected",
    ", or go on without it: .on_bad_record(Skip::up_to(100))",
    "; go on without it: .on_bad_record(Skip::up_to(100))",
];

/// Returns an error's text with flags in place of calls. `columns` is the command's flag that selects columns, if it has one.
pub(super) fn in_flags(text: &str, columns: Option<&str>) -> String {
    let mut text = OF_PROGRAMS.iter().fold(text.to_owned(), |text, advice| text.replace(advice, ""));
    for (call, flag) in FLAGS {
        let flag = flag.replace("{columns}", columns.unwrap_or("the columns of a program"));
        text = text.replace(call, &flag);
    }
    text
}

/// Returns what is wrong, without its place, and what to do about it.
pub(super) fn with_advice(error: &Error) -> String {
    let advice = error.advised().map(|advice| format!("; {advice}")).unwrap_or_default();
    in_flags(&(error.reason() + &advice), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_become_flags_or_go() {
        let said = |text: &str| in_flags(text, Some("--columns"));
        assert_eq!(
            said("x: no; name the columns to read: .columns([..])"),
            "x: no; name the columns to read: --columns"
        );
        assert_eq!(said("x: no value; give the column a default: .optional()"), "x: no value");
        assert_eq!(
            said("x: no; state the format: Dataset::open_with(urls, format)"),
            "x: no; state the format: --format"
        );
        assert_eq!(said("x: no; write it again"), "x: no; write it again");
    }

    #[test]
    fn what_is_replaced_is_what_the_library_says() {
        let mut files = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        let mut library = String::new();
        while let Some(path) = files.pop() {
            if path.is_dir() {
                let entries = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
                files.extend(entries.filter(|path| !path.ends_with("src/cli")));
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                library += &std::fs::read_to_string(&path).unwrap().replace("\\\"", "\"");
            }
        }
        for text in FLAGS.map(|(call, _)| call).into_iter().chain(OF_PROGRAMS) {
            // What joins it to the text before it is put there by the error.
            let said = text.trim_start_matches("; ").trim_start_matches(", or ");
            assert!(library.contains(said), "nothing in the library says {said:?}");
        }
    }
}
