//! Example configurations: each key of the binary is there, once, and what is shown as a default is it; and
//! variables in deployments, which must name a key.
//!
//! In an example a line `#key = value` shows a default, `#key = value # example` a value that is none, and prose
//! has a space after its `#`.

use std::fmt::{Debug, Display};

use serde::de::value::Error as SerdeError;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;
use toml::Table;

use super::TextFile;

/// Marks a commented line whose value is no default.
const EXAMPLE: &str = "# example";

/// One complaint per mistake in `file`, an example for a binary that reads `R` and checks it with `validate`.
pub fn check_config<R, C, E>(file: &TextFile, validate: impl Fn(R) -> Result<C, E>) -> Vec<String>
where
    R: DeserializeOwned,
    C: Debug,
    E: Display,
{
    let mut complaints = Vec::new();
    let mut complain = |what: String| complaints.push(format!("{}: {what}", file.path));
    let load = |text: &str| {
        let raw = toml::from_str(text).map_err(|e| e.to_string())?;
        validate(raw).map(|config| format!("{config:?}")).map_err(|e| e.to_string())
    };
    let as_it_is = load(&file.text);
    if let Err(e) = &as_it_is {
        complain(format!("is refused as it is: {e}"));
    }
    let everything = uncomment(&file.text, |_| true);
    match toml::from_str::<Table>(&everything) {
        Ok(table) => {
            let missing = field_names::<R>().iter().filter(|name| !table.contains_key(**name));
            missing.for_each(|name| complain(format!("does not show '{name}'")));
            if let Err(e) = toml::from_str::<R>(&everything) {
                complain(format!("is refused with every line in use: {e}"));
            }
        }
        Err(e) => complain(format!("is no TOML with every line in use: {e}")),
    }
    let shows_default = |line: &&str| setting(line).is_some_and(|setting| !setting.ends_with(EXAMPLE));
    for line in file.text.lines().filter(shows_default) {
        let with = load(&uncomment(&file.text, |other| other == line));
        if with != as_it_is {
            complain(format!("'{line}' is not the default; if it shall not be, add '{EXAMPLE}'"));
        }
    }
    complaints
}

/// One complaint per variable in `files` that starts with `prefix` and sets no key of `R`.
pub fn check_variables<R: DeserializeOwned>(files: &[TextFile], prefix: &str) -> Vec<String> {
    let names = field_names::<R>();
    let mut complaints = Vec::new();
    for file in files {
        for (index, line) in file.text.lines().enumerate() {
            for rest in line.split(prefix).skip(1) {
                let end = rest.find(|c: char| c != '_' && !c.is_ascii_uppercase()).unwrap_or(rest.len());
                let key = rest[..end].to_lowercase();
                // The bare prefix stands for all of them.
                if !key.is_empty() && !names.contains(&key.as_str()) {
                    complaints.push(format!(
                        "{}:{}: {prefix}{} sets nothing",
                        file.path,
                        index + 1,
                        &rest[..end]
                    ));
                }
            }
        }
    }
    complaints
}

/// The text of a commented setting.
fn setting(line: &str) -> Option<&str> {
    line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()))
}

fn uncomment(text: &str, which: impl Fn(&str) -> bool) -> String {
    let lines = text.lines().map(|line| setting(line).filter(|_| which(line)).unwrap_or(line));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The keys that `T`, a struct, is read from.
fn field_names<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut names: &[&str] = &[];
    // The error is how it gets out again.
    let _ = T::deserialize(Fields(&mut names));
    names
}

/// Reads nothing, and notes which fields were asked for.
struct Fields<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = SerdeError;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, SerdeError> {
        *self.0 = fields;
        Err(SerdeError::custom("there is no value"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, SerdeError> {
        Err(SerdeError::custom("not read as a struct"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
    struct Raw {
        data: Option<String>,
        log_level: Option<String>,
        token: Option<String>,
    }

    fn validate(raw: Raw) -> Result<(String, String, Option<String>), &'static str> {
        let data = raw.data.ok_or("no data")?;
        Ok((data, raw.log_level.unwrap_or_else(|| "info".into()), raw.token))
    }

    fn complaints(text: &str) -> String {
        check_config(&TextFile::new("a.toml", text), validate).join("\n")
    }

    const GOOD: &str = "# Prose.\ndata = 'd'\n#log-level = 'info'\n#token = 't' # example\n";

    #[test]
    fn takes_a_whole_example() {
        assert_eq!(complaints(GOOD), "");
    }

    #[test]
    fn names_variables_that_set_nothing() {
        let file = |text| [TextFile::new("a.env", text)];
        assert_eq!(check_variables::<Raw>(&file("A_DATA=1\nset A_... and A_TOKEN=$A_DATA"), "A_"), [""; 0]);
        let said = check_variables::<Raw>(&file("A_DATA=1\nA_DATE=2"), "A_");
        assert_eq!(said, ["a.env:2: A_DATE sets nothing"]);
    }

    #[test]
    fn names_each_mistake() {
        for (mistake, fix, complaint) in [
            ("data = 'd'", "", "refused as it is: no data"),
            ("data = 'd'", "data = 'd'\ndate = 'd'", "unknown field `date`"),
            ("#token", "#tokens", "refused with every line in use"),
            ("#token = 't' # example", "", "does not show 'token'"),
            ("#token = 't' # example", "# token = 't'", "does not show 'token'"),
            ("#log-level", "#log-level = 'warn' # example\n#log-level", "no TOML with every line in use"),
            ("'info'", "'warn'", "'#log-level = 'warn'' is not the default"),
            (" # example", "", "'#token = 't'' is not the default"),
        ] {
            let said = complaints(&GOOD.replace(mistake, fix));
            assert!(said.contains(complaint), "{fix}: {said}");
        }
    }
}
