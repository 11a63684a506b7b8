//! Dead links: every relative link in a Markdown file leads to a file, and its fragment to a heading.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::TextFile;

/// One complaint per dead link. Links to other hosts are not tried. `exists` answers for a path below the
/// root, also for directories and files that are not text.
pub fn check_links(files: &[TextFile], exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let pages: BTreeMap<&str, BTreeSet<String>> =
        markdown(files).map(|file| (&*file.path, headings(&file.text))).collect();
    let mut complaints = Vec::new();
    for file in markdown(files) {
        for (line, target) in targets(&file.text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, fragment) = target.split_once('#').unwrap_or((&*target, ""));
            let page = if path.is_empty() { file.path.clone() } else { resolve(&file.path, path) };
            let dead = !exists(Path::new(&page))
                || !fragment.is_empty() && pages.get(&*page).is_some_and(|known| !known.contains(fragment));
            if dead {
                complaints.push(format!("{}:{line}: dead link '{target}'", file.path));
            }
        }
    }
    complaints
}

fn markdown(files: &[TextFile]) -> impl Iterator<Item = &TextFile> {
    files.iter().filter(|file| file.has_extension("md"))
}

/// The lines of `text` that are not code, numbered from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        (!in_code && !fence).then_some((index + 1, line))
    })
}

/// Line and target of each `[text](target)` and `[name]: target`.
fn targets(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let line = without_inline_code(line);
        if let Some((label, target)) = line.split_once("]: ")
            && label.starts_with('[')
        {
            found.push((number, target.trim().to_string()));
        }
        for rest in line.split("](").skip(1) {
            let target = rest.split([')', ' ']).next().unwrap_or_default();
            found.push((number, target.trim_matches(['<', '>']).to_string()));
        }
    }
    found
}

fn without_inline_code(line: &str) -> String {
    // Even parts lie outside backticks; a code span may still be a link's text, so a mark stays.
    line.split('`').enumerate().map(|(index, part)| if index % 2 == 0 { part } else { "_" }).collect()
}

/// The fragments that the headings of a page answer to.
fn headings(text: &str) -> BTreeSet<String> {
    let slug = |heading: &str| {
        let kept = heading.trim().to_lowercase();
        kept.chars()
            .filter_map(|c| match c {
                ' ' => Some('-'),
                c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                _ => None,
            })
            .collect()
    };
    prose(text)
        .filter(|(_, line)| line.starts_with('#'))
        .map(|(_, l)| slug(l.trim_start_matches('#')))
        .collect()
}

/// `link` as seen from the directory of `page`, without `.` and `..`.
fn resolve(page: &str, link: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    if link.starts_with('/') {
        parts.clear();
    }
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(text: &str) -> Vec<String> {
        let files = [
            TextFile::new("docs/a.md", text),
            TextFile::new("docs/b.md", "# Two words, `code`\n```\n# not a heading\n```\n"),
        ];
        let known = ["docs/a.md", "docs/b.md", "README.md", "docs"];
        check_links(&files, |path| known.iter().any(|known| Path::new(known) == path))
    }

    #[test]
    fn takes_links_that_lead_somewhere() {
        let text = "[b](b.md) [up](../README.md) [`x`](b.md#two-words-code) [w](https://a.b/c) [d](../docs/)\n\
                    [me](#here)\n# Here\n[ref]: b.md\n";
        assert_eq!(complaints(text), [""; 0]);
    }

    #[test]
    fn names_dead_links_with_their_line() {
        assert_eq!(complaints("\n[c](c.md)"), ["docs/a.md:2: dead link 'c.md'"]);
        assert_eq!(complaints("[b](b.md#not-a-heading)"), ["docs/a.md:1: dead link 'b.md#not-a-heading'"]);
        assert_eq!(complaints("![p](../x.png) [b](b.md)"), ["docs/a.md:1: dead link '../x.png'"]);
        assert_eq!(complaints("[me](#gone)"), ["docs/a.md:1: dead link '#gone'"]);
    }

    #[test]
    fn leaves_code_alone() {
        assert_eq!(complaints("```\n[c](c.md)\n```\n`[c](c.md)` text"), [""; 0]);
    }
}
