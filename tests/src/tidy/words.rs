//! Words that do not belong into the repository: it speaks of the product alone, and of it as it is.

use super::TextFile;

/// Refused anywhere, whatever the case. Split, so that this file passes its own check.
const ANYWHERE: &[(&str, &str)] = &[
    (concat!("/wo", "rk/"), "a path of one machine"),
    (concat!("/fa", "rm/"), "a path of one machine"),
    (concat!("/tm", "p/t/"), "a path of one machine"),
    (concat!("/ho", "me/"), "a path of one machine"),
    (concat!("/root/.", "cargo"), "a path of one machine"),
    (concat!("sub", "agent"), "not of the product"),
    (concat!("anthro", "pic"), "not of the product"),
    (concat!("chat", "gpt"), "not of the product"),
    (concat!("<<<<", "<<<"), "an unresolved merge"),
];

/// Refused in Rust files: a promise instead of code.
const IN_CODE: &[(&str, &str)] = &[
    (concat!("tod", "o!("), "unfinished"),
    (concat!("unimple", "mented!("), "unfinished"),
    (concat!("FIX", "ME"), "unfinished"),
    (concat!("XX", "X"), "unfinished"),
    (concat!("#[ign", "ore"), "a test that does not run"),
];

/// One complaint per line and word.
pub fn check_words(files: &[TextFile]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files {
        for (index, line) in file.text.lines().enumerate() {
            let lower = line.to_lowercase();
            let anywhere = ANYWHERE.iter().filter(|(word, _)| lower.contains(word));
            let in_code = IN_CODE.iter().filter(|(word, _)| file.has_extension("rs") && line.contains(word));
            for (word, why) in anywhere.chain(in_code) {
                complaints.push(format!("{}:{}: '{word}': {why}", file.path, index + 1));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_file_line_and_word() {
        let word = ANYWHERE[0].0;
        let files = [TextFile::new("docs/a.md", &format!("fine\nsee {}x", word.to_uppercase()))];
        assert_eq!(check_words(&files), [format!("docs/a.md:2: '{word}': a path of one machine")]);
    }

    #[test]
    fn code_words_are_refused_in_code_only() {
        let text = IN_CODE[0].0;
        assert_eq!(check_words(&[TextFile::new("a.rs", text)]).len(), 1);
        assert_eq!(check_words(&[TextFile::new("a.md", text)]), [""; 0]);
    }
}
