//! Any text yields settings or problems, one per line, in the order of the file.
#![no_main]

use tidegate_settings::Settings;

libfuzzer_sys::fuzz_target!(|text: &str| {
    match Settings::parse(text) {
        Ok(settings) => assert!(!settings.backends.is_empty()),
        Err(problems) => {
            assert!(!problems.is_empty());
            assert!(problems.is_sorted_by_key(|problem| problem.line));
            for problem in problems {
                assert!(!problem.to_string().contains(char::is_control), "{problem:?}");
                assert!(problem.line.is_none_or(|line| line <= text.split('\n').count()));
            }
        }
    }
});
