//! Any text yields settings or readable problems.

use proptest::prelude::*;

use crate::Settings;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_text_is_settings_or_problems_of_one_line_each(
        lines in prop::collection::vec(any_line(), 0..12),
    ) {
        holds(&lines.join("\n"))?;
    }

    #[test]
    fn a_damaged_file_yields_settings_or_problems(
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0..9_usize, any_word()), 1..4),
    ) {
        let mut text: Vec<char> = include_str!("../../config/gateway.toml").chars().collect();
        for (at, length, word) in damage {
            let at = at.index(text.len());
            text.splice(at..text.len().min(at + length), word.chars());
        }
        holds(&text.into_iter().collect::<String>())?;
    }
}

/// Checks the result for a text.
fn holds(text: &str) -> Result<(), TestCaseError> {
    match Settings::parse(text) {
        Ok(settings) => prop_assert!(!settings.backends.is_empty()),
        Err(problems) => {
            prop_assert!(!problems.is_empty());
            prop_assert!(problems.is_sorted_by_key(|problem| problem.line));
            for problem in problems {
                prop_assert!(!problem.to_string().contains(char::is_control), "{problem:?}");
            }
        }
    }
    Ok(())
}

fn any_word() -> impl Strategy<Value = String> {
    let words = ["", "\n", "#", "\"", "[", "]]", "= ", "[[backends]]\n", "-1", "nan", "\u{7}"];
    prop::sample::select(words.to_vec()).prop_map(str::to_owned)
}

/// Lines that are nearly a configuration.
fn any_line() -> impl Strategy<Value = String> {
    let heads = ["[server]", "[slo]", "[[backends]]", "[[models]]", "[[auth.keys]]", "[queue]"];
    let keys = ["name", "url", "listen", "threads", "key", "role", "pin", "ttft_seconds", "models"];
    let values = ["1", "-1", "1e300", "true", "\"a\"", "[\"a\", 1]", "\"http://a:1\"", "{ a = 1 }"];
    let (key, value) = (prop::sample::select(keys.to_vec()), prop::sample::select(values.to_vec()));
    prop_oneof![
        prop::sample::select(heads.to_vec()).prop_map(str::to_owned),
        (key, value).prop_map(|(key, value)| format!("{key} = {value}")),
        ".{0,30}",
        "\"\\PC{0,5}\" = 1",
    ]
}
