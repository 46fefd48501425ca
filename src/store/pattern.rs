//! Patterns: braces, numeric ranges and globs, parsed and matched without access to a store.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::url::{Base, Split, absolute, check_segment, decode, decode_key, split};
use crate::{Error, Result};

/// The most alternatives in one pair of braces: more are a typing mistake.
const MAX_EXPANSION: usize = 1 << 20;

/// One pattern without braces.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pattern {
    /// The text as written, with braces replaced.
    pub(super) text: String,
    pub(super) root: Root,
    pub(super) segments: Vec<Segment>,
    /// Whether the pattern ended in a slash: then it stands for everything below that is not hidden.
    pub(super) folder: bool,
}

/// The root below which the segments lie.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Root {
    Local(PathBuf),
    Remote(Base),
}

/// The text between two slashes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Segment {
    Literal(String),
    Glob(Vec<Token>),
    /// `**`: any number of folders, including none.
    Deep,
}

/// A component of a glob.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Char(char),
    /// `?`
    One,
    /// `*`
    Many,
    /// `[a-c]`, `[!a-c]`
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Pattern {
    /// Parses one pattern whose braces have been expanded.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let (root, rest, encoded) = match split(text)? {
            Split::Path(path) if path.starts_with('/') => (Root::Local(PathBuf::from("/")), path, false),
            Split::Path(path) => (Root::Local(absolute(".".as_ref())?), path, false),
            Split::File(path) => (Root::Local(PathBuf::from("/")), path, true),
            Split::Remote(base, key) => {
                let encoded = base.scheme.is_encoded();
                (Root::Remote(base), key, encoded)
            }
        };
        if let (true, Root::Remote(_)) = (encoded, &root) {
            decode_key(text, rest)?;
        }
        let folder = rest.is_empty() || rest.ends_with('/') || rest.ends_with("/.") || rest == ".";
        let body = rest.strip_suffix('/').unwrap_or(rest);
        let mut segments = Vec::new();
        for part in body.split('/') {
            match part {
                "" | "." if matches!(root, Root::Local(_)) => {}
                "" if body.is_empty() => {}
                "**" => segments.push(Segment::Deep),
                _ => segments.push(Segment::parse(text, part, encoded)?),
            }
        }
        if let Root::Remote(_) = root {
            for segment in &segments {
                if let Segment::Literal(name) = segment {
                    check_segment(text, name)?;
                }
            }
        }
        Ok(Self { text: text.to_owned(), root, segments, folder })
    }

    /// Returns whether the pattern names one object, so that nothing has to be listed.
    pub(super) fn is_literal(&self) -> bool {
        !self.folder && self.segments.iter().all(|segment| matches!(segment, Segment::Literal(_)))
    }

    /// Returns the literal segments before the first glob.
    pub(super) fn literal_segments(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().map_while(|segment| match segment {
            Segment::Literal(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Returns the folders before the first glob, each followed by a slash.
    pub(super) fn literal_folder(&self) -> String {
        let mut folders: Vec<&str> = self.literal_segments().collect();
        if folders.len() == self.segments.len() && !self.folder {
            folders.pop();
        }
        folders.iter().map(|folder| format!("{folder}/")).collect()
    }

    /// Returns the longest text with which every matching key begins.
    pub(super) fn literal_prefix(&self) -> String {
        let mut prefix = self.literal_folder();
        match self.segments.get(self.literal_segments().count()) {
            Some(Segment::Glob(tokens)) => prefix.extend(tokens.iter().map_while(|token| match token {
                Token::Char(c) => Some(*c),
                _ => None,
            })),
            Some(_) => {}
            None if self.folder => {}
            None => prefix.push_str(self.literal_segments().last().unwrap_or_default()),
        }
        prefix
    }

    /// Returns whether every match lies directly in the literal folder, so that nothing below it need be listed.
    pub(super) fn is_flat(&self) -> bool {
        !self.folder
            && self.literal_segments().count() + 1 >= self.segments.len()
            && !matches!(self.segments.last(), Some(Segment::Deep))
    }

    /// Returns whether a key, or a path below the root, matches.
    pub(super) fn matches(&self, key: &str) -> bool {
        let parts: Vec<&str> = key.split('/').collect();
        if !self.folder {
            return matches(&self.segments, &parts);
        }
        // What matched the folder itself is followed by at least one name, none of them hidden.
        (self.shortest_folder()..parts.len()).any(|cut| {
            parts[cut..].iter().all(|part| !part.starts_with(['.', '_'])) && matches(&self.segments, &parts[..cut])
        })
    }

    fn shortest_folder(&self) -> usize {
        self.segments.iter().filter(|segment| !matches!(segment, Segment::Deep)).count()
    }

    /// Returns whether something below this folder may match, so that a walk has to enter it.
    pub(super) fn may_match_below(&self, folder: &str) -> bool {
        let parts: Vec<&str> = folder.split('/').collect();
        for (at, part) in parts.iter().enumerate() {
            match self.segments.get(at) {
                Some(Segment::Deep) => return !parts[at..].iter().any(|part| part.starts_with('.')),
                Some(segment) if segment.matches(part) => {}
                Some(_) => return false,
                None => return self.folder && !parts[at..].iter().any(|part| part.starts_with(['.', '_'])),
            }
        }
        self.folder || parts.len() < self.segments.len()
    }
}

impl Segment {
    fn parse(text: &str, part: &str, encoded: bool) -> Result<Self> {
        if !part.contains(['*', '?', '[']) {
            return Ok(Self::Literal(literal(text, part, encoded)?));
        }
        if part.contains("**") {
            return Err(Error::config("`**` with something beside it").url(text).advice(
                "`**` stands alone between slashes (a/**/b) and means any folders; a single `*` stays within one name",
            ));
        }
        let mut tokens = Vec::new();
        let mut rest = part;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            match c {
                '*' => tokens.push(Token::Many),
                '?' => tokens.push(Token::One),
                '[' => {
                    let (class, after) = class(text, rest)?;
                    tokens.push(class);
                    rest = after;
                }
                _ => {
                    let end = rest.find(['*', '?', '[']).unwrap_or(rest.len());
                    let run = &part[part.len() - rest.len() - c.len_utf8()..part.len() - rest.len() + end];
                    tokens.extend(literal(text, run, encoded)?.chars().map(Token::Char));
                    rest = &rest[end..];
                }
            }
        }
        Ok(Self::Glob(tokens))
    }

    /// Returns whether a name matches. As in a shell, names that begin with a dot only match patterns that begin with a dot.
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Literal(literal) => literal == name,
            Self::Deep => !name.starts_with('.'),
            Self::Glob(tokens) => {
                (!name.starts_with('.') || tokens.first() == Some(&Token::Char('.'))) && glob(tokens, name)
            }
        }
    }
}

fn literal(text: &str, part: &str, encoded: bool) -> Result<String> {
    if !encoded {
        return Ok(part.to_owned());
    }
    String::from_utf8(decode(part).into_owned())
        .map_err(|e| Error::config("the percent-encoded path is not UTF-8").url(text).because(e))
}

/// Parses a class after its `[`.
fn class<'a>(text: &str, rest: &'a str) -> Result<(Token, &'a str)> {
    let unclosed = || Error::config("`[` without `]`").url(text).advice("write [[] for the character itself");
    let (negated, mut rest) = match rest.strip_prefix(['!', '^']) {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let mut ranges = Vec::new();
    loop {
        let low = rest.chars().next().ok_or_else(unclosed)?;
        rest = &rest[low.len_utf8()..];
        if low == ']' && !ranges.is_empty() {
            return Ok((Token::Class { negated, ranges }, rest));
        }
        let mut after = rest.chars();
        match (after.next(), after.next()) {
            (Some('-'), Some(high)) if high != ']' => {
                if high < low {
                    return Err(Error::config(format!("[{low}-{high}] runs backwards")).url(text));
                }
                ranges.push((low, high));
                rest = after.as_str();
            }
            _ => ranges.push((low, low)),
        }
    }
}

/// Matches one name. Only the last `*` seen ever has to take more characters.
fn glob(tokens: &[Token], name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    let (mut token, mut at, mut star) = (0, 0, None);
    while at < name.len() {
        let fits = match tokens.get(token) {
            Some(Token::Many) => {
                star = Some((token, at));
                token += 1;
                continue;
            }
            Some(Token::Char(c)) => *c == name[at],
            Some(Token::One) => true,
            Some(Token::Class { negated, ranges }) => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&name[at])) != *negated
            }
            None => false,
        };
        match (fits, star) {
            (true, _) => (token, at) = (token + 1, at + 1),
            (false, Some((many, from))) => {
                (token, at) = (many + 1, from + 1);
                star = Some((many, from + 1));
            }
            (false, None) => return false,
        }
    }
    tokens[token..].iter().all(|token| *token == Token::Many)
}

/// Matches names against segments; `reached[j]` says that the segments so far can end before part `j`.
fn matches(segments: &[Segment], parts: &[&str]) -> bool {
    let mut reached = vec![false; parts.len() + 1];
    reached[0] = true;
    for (index, segment) in segments.iter().enumerate() {
        let mut next = vec![false; parts.len() + 1];
        if *segment == Segment::Deep {
            // At the end it stands for the names themselves, so at least one.
            let least = usize::from(index + 1 == segments.len());
            let mut open = None;
            for at in 0..=parts.len() {
                if at > 0 && parts[at - 1].starts_with('.') {
                    open = None;
                }
                if reached[at] && open.is_none() {
                    open = Some(at);
                }
                next[at] = open.is_some_and(|from| at >= from + least);
            }
        } else {
            for (at, part) in parts.iter().enumerate() {
                next[at + 1] = reached[at] && segment.matches(part);
            }
        }
        reached = next;
    }
    reached[parts.len()]
}

/// Expands `{a,b}` and `{000..127}`, in the order written. Braces around anything else stay as they are.
pub(super) fn expand(text: &str) -> Result<Vec<String>> {
    let mut done = Vec::new();
    expand_into(text, String::new(), text, &mut done)?;
    Ok(done)
}

fn expand_into(text: &str, head: String, rest: &str, done: &mut Vec<String>) -> Result<()> {
    let Some(open) = find_open(rest) else {
        if done.len() == MAX_EXPANSION {
            return Err(Error::config(format!("the braces stand for more than {MAX_EXPANSION} URLs")).url(text));
        }
        done.push(head + rest);
        return Ok(());
    };
    let (inside, tail) = close(&rest[open + 1..]).ok_or_else(|| {
        Error::config("`{` without `}`").url(text).advice("close it, or write [{] for the character itself")
    })?;
    let head = head + &rest[..open];
    let options = options(text, inside)?;
    if options.is_empty() {
        return expand_into(text, head + "{" + inside + "}", tail, done);
    }
    for option in options {
        // An option may hold braces of its own.
        expand_into(text, head.clone(), &format!("{option}{tail}"), done)?;
    }
    Ok(())
}

/// Finds the first `{` that is not part of `[{]`.
fn find_open(text: &str) -> Option<usize> {
    text.match_indices('{').map(|(at, _)| at).find(|&at| !(text[..at].ends_with('[') && text[at..].starts_with("{]")))
}

/// Splits the text after a `{` at the matching `}`.
fn close(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some((&text[..at], &text[at + 1..])),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Returns the alternatives in a pair of braces; nothing if the braces are plain characters.
fn options(text: &str, inside: &str) -> Result<Vec<String>> {
    let mut options = vec![];
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                options.push(inside[start..at].to_owned());
                start = at + 1;
            }
            _ => {}
        }
    }
    if !options.is_empty() {
        options.push(inside[start..].to_owned());
        return Ok(options);
    }
    let Some((low, high)) = inside.split_once("..") else {
        return Ok(options);
    };
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse::<u64>().ok()).flatten().ok_or_else(|| {
            Error::config(format!("{{{inside}}} is no range of numbers"))
                .url(text)
                .advice("write it as {00000..01023}, both ends included")
        })
    };
    let (first, last) = (number(low)?, number(high)?);
    if first > last {
        return Err(Error::config(format!("{{{inside}}} runs backwards")).url(text));
    }
    if last - first >= MAX_EXPANSION as u64 {
        return Err(Error::config(format!("{{{inside}}} stands for more than {MAX_EXPANSION} URLs")).url(text));
    }
    let padded = [low, high].iter().any(|digits| digits.len() > 1 && digits.starts_with('0'));
    let width = if padded { low.len().max(high.len()) } else { 0 };
    Ok((first..=last).map(|number| format!("{number:0width$}")).collect())
}

/// Returns the path below `root`, for matching. Names that are not text match nothing but a folder.
pub(super) fn relative(root: &std::path::Path, path: &std::path::Path) -> Option<String> {
    let below = path.strip_prefix(root).ok()?;
    Some(String::from_utf8_lossy(below.as_os_str().as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_and_ranges_expand_as_in_a_shell() {
        let cases: &[(&str, &[&str])] = &[
            ("a", &["a"]),
            ("a{b,c}d", &["abd", "acd"]),
            ("{b,}x", &["bx", "x"]),
            ("{a,b}{1,2}", &["a1", "a2", "b1", "b2"]),
            ("{a,b{1,2}}", &["a", "b1", "b2"]),
            ("s-{8..11}", &["s-8", "s-9", "s-10", "s-11"]),
            ("s-{08..11}", &["s-08", "s-09", "s-10", "s-11"]),
            (
                "s-{0..3}-of-{4,5}",
                &["s-0-of-4", "s-0-of-5", "s-1-of-4", "s-1-of-5", "s-2-of-4", "s-2-of-5", "s-3-of-4", "s-3-of-5"],
            ),
            ("{099..101}", &["099", "100", "101"]),
            ("{0..0}", &["0"]),
            ("{abc}", &["{abc}"]),
            ("{}", &["{}"]),
            ("a}b", &["a}b"]),
            ("[{]0..1}", &["[{]0..1}"]),
        ];
        for (text, expected) in cases {
            assert_eq!(expand(text).unwrap(), *expected, "{text}");
        }
        let shards = expand("train-{00000..01023}-of-01024.tfrecord").unwrap();
        assert_eq!((shards.len(), &*shards[7]), (1024, "train-00007-of-01024.tfrecord"));
    }

    #[test]
    fn braces_that_cannot_be_meant_are_refused() {
        let cases = [
            ("{0..", "without `}`"),
            ("{5..1}", "backwards"),
            ("{a..c}", "no range of numbers"),
            ("{0..99999999999}", "more than"),
            ("{0..1048576}", "more than"),
            ("{0..99999999999999999999999}", "no range"),
            ("{0..2047}{0..2047}", "more than"),
        ];
        for (text, word) in cases {
            let error = expand(text).unwrap_err();
            assert!(error.to_string().contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn globs_match_whole_keys() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("*.rec", &["a.rec", ".rec.rec".trim_start_matches('.')], &["a/b.rec", "a.rec2", ".a.rec"]),
            ("a?c", &["abc", "aéc"], &["ac", "abbc", "a/c"]),
            ("a*b*c", &["abc", "abbbc", "axbxc", "abcbc"], &["ab", "acb"]),
            ("[a-c]x", &["ax", "cx"], &["dx", "-x"]),
            ("[!a-c]x", &["dx"], &["ax", "x"]),
            ("[]-]x", &["]x", "-x"], &["ax"]),
            ("x[[]1]", &["x[1]"], &["x1"]),
            ("x[*]", &["x*"], &["xx"]),
            ("a/**/x", &["a/x", "a/b/x", "a/b/c/x"], &["x", "a/b/y", "a/.b/x"]),
            ("a/**", &["a/x", "a/b/c"], &["a", "b/x", "a/.x", "a/.b/x"]),
            ("**/x", &["x", "a/x"], &["a", ".a/x"]),
            ("**/a/**/b", &["a/b", "x/a/y/z/b", "a/a/b"], &["b", "a"]),
            ("a/*/x", &["a/b/x"], &["a/x", "a/b/c/x"]),
            ("a/", &["a/x", "a/b/c"], &["a", "ab", "b/x", "a/.x", "a/_x", "a/_b/x", "a/b/_SUCCESS"]),
            ("", &["x", "a/b"], &[".x", "_x"]),
            ("run-*/", &["run-1/x", "run-2/a/b"], &["run-1", "x/run-1", "run-1/_x"]),
            ("_*", &["_x"], &["x"]),
            (".h*", &[".hidden"], &["hidden"]),
            ("größe-?", &["größe-é"], &["größe-"]),
            ("a%20*", &["a%20b"], &["a b"]),
        ];
        for (text, yes, no) in cases {
            let pattern = Pattern::parse(&format!("gs://b/{text}")).unwrap();
            for key in *yes {
                assert!(pattern.matches(key), "{text} should match {key}");
                let folders = key.match_indices('/').map(|(at, _)| &key[..at]);
                folders.for_each(|f| assert!(pattern.may_match_below(f), "{text}: walks past {f} to {key}"));
                assert!(key.starts_with(&pattern.literal_prefix()), "{text}: prefix of {key}");
                assert!(
                    !pattern.is_flat() || !key[pattern.literal_folder().len()..].contains('/'),
                    "{text}: flat, {key}"
                );
            }
            for key in *no {
                assert!(!pattern.matches(key), "{text} should not match {key}");
            }
        }
    }

    #[test]
    fn listing_starts_at_the_longest_literal_prefix() {
        let cases = [
            ("gs://b/a/train-*.rec", "a/", "a/train-", true),
            ("gs://b/a/*/x", "a/", "a/", false),
            ("gs://b/a/**", "a/", "a/", false),
            ("gs://b/**/x", "", "", false),
            ("gs://b/a/b/", "a/b/", "a/b/", false),
            ("gs://b", "", "", false),
            ("gs://b/a/x", "a/", "a/x", true),
            ("gs://b/tr[ae]in/x", "", "tr", false),
            ("gs://b/x[*]y", "", "x", true),
        ];
        for (text, folder, prefix, flat) in cases {
            let pattern = Pattern::parse(text).unwrap();
            assert_eq!(pattern.literal_folder(), folder, "{text}");
            assert_eq!(pattern.literal_prefix(), prefix, "{text}");
            assert_eq!(pattern.is_flat(), flat, "{text}");
        }
    }

    #[test]
    fn an_escaped_star_in_a_file_url_is_a_character() {
        let pattern = Pattern::parse("file:///d/a%2A*").unwrap();
        assert!(pattern.matches("d/a*b") && !pattern.matches("d/ab"));
        assert!(Pattern::parse("file:///d/a%2A").unwrap().is_literal());
    }

    #[test]
    fn a_working_folder_with_odd_characters_stays_literal() {
        let Pattern { root, segments, .. } = Pattern::parse("x/*").unwrap();
        assert_eq!(root, Root::Local(std::env::current_dir().unwrap()));
        assert_eq!(segments.len(), 2);
    }

    #[test]
    fn globs_that_cannot_be_meant_are_refused() {
        for (text, word) in [
            ("gs://b/a[bc", "without `]`"),
            ("gs://b/a**b", "alone"),
            ("gs://b/[z-a]", "backwards"),
            ("gs://b/a//*", "two slashes"),
        ] {
            let error = Pattern::parse(text).unwrap_err();
            assert!(error.to_string().contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn many_stars_end_quickly() {
        let pattern = Pattern::parse(&format!("gs://b/{}x", "*a".repeat(60))).unwrap();
        assert!(!pattern.matches(&"a".repeat(2000)));
        let pattern = Pattern::parse(&format!("gs://b/{}x", "**/a/".repeat(30))).unwrap();
        assert!(!pattern.matches(&"a/".repeat(500)));
    }
}
