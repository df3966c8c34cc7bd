//! Checks of entries of `[[backends]]` that describe discovered backends.

use super::Findings;
use crate::schema::BackendSettings;

/// Checks the DNS name or the directory of an entry, and that it has one source.
pub(super) fn of_backend(
    backend: &BackendSettings,
    path: &dyn Fn(&str) -> String,
    found: &mut Findings,
) {
    let BackendSettings { kubernetes, dns, directory, .. } = backend;
    let several = usize::from(kubernetes.is_some())
        + usize::from(dns.is_some())
        + usize::from(directory.is_some());
    let keys = ["kubernetes", "dns", "directory"].map(path);
    let with = keys.each_ref().map(String::as_str);
    found.check_with(
        several < 2,
        &path("name"),
        &with,
        "has several sources",
        "use one entry per source",
    );
    let expands = backend.expand && backend.is_source();
    found.check_with(
        !expands,
        &path("expand"),
        &with,
        "applies only to an entry with one URL",
        "omit it",
    );
    if let Some(dns) = dns {
        let name = path("dns.name");
        if found.required(!dns.name.is_empty(), &name, "a host name") {
            let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            let is_name = dns.name.len() <= 253 && dns.name.bytes().all(letter);
            found.check(is_name, &name, "is not a host name", "a-z, 0-9, '-', '_' and '.'");
        }
        found.count(u64::from(dns.port), (1, u64::from(u16::MAX)), &path("dns.port"));
        found.positive(dns.refresh, &path("dns.refresh_seconds"));
    }
    if let Some(directory) = directory {
        let is_set = !directory.path.as_os_str().is_empty();
        found.required(is_set, &path("directory.path"), "a directory of *.toml files");
        let alone = BackendSettings {
            name: backend.name.clone(),
            directory: backend.directory.clone(),
            ..BackendSettings::default()
        };
        let problem = "has keys other than name and directory";
        let hint = "the files contain the settings of each backend";
        found.check(*backend == alone, &path("directory"), problem, hint);
    }
}

#[cfg(test)]
mod tests {
    use crate::{Settings, backends_of};

    fn problems(more: &str) -> Vec<String> {
        let text = format!("[[backends]]\nname = \"a\"\n{more}");
        match Settings::parse(&text) {
            Ok(settings) => {
                assert!(settings.backends.is_empty() && settings.sources.len() == 1, "{more}");
                Vec::new()
            }
            Err(problems) => problems.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_source_needs_no_url_and_no_address() {
        for good in [
            "[backends.dns]\nname = \"vllm.llm.svc.cluster.local\"",
            "url = \"http://any/base\"\n[backends.dns]\nname = \"vllm\"\nport = 1",
            "[backends.directory]\npath = \"/etc/backends\"",
        ] {
            assert_eq!(problems(good), Vec::<String>::new(), "{good}");
        }
    }

    #[test]
    fn contradicting_keys_are_refused() {
        for (wrong, problem) in [
            ("[backends.dns]\nport = 1", "dns.name: is missing"),
            ("[backends.dns]\nname = \"a/b\"", "dns.name: is not a host name"),
            ("[backends.dns]\nname = \"a\"\nport = 0", "dns.port: is 0"),
            ("[backends.dns]\nname = \"a\"\nrefresh_seconds = 0", "dns.refresh_seconds"),
            ("expand = true\n[backends.dns]\nname = \"a\"", "expand: applies only"),
            ("[backends.directory]", "directory.path: is missing"),
            (
                "streams_max = 8\n[backends.directory]\npath = \"p\"",
                "directory: has keys other than",
            ),
            (
                "[backends.directory]\npath = \"p\"\n[backends.dns]\nname = \"a\"",
                "name: has several sources",
            ),
        ] {
            let found = problems(wrong);
            assert!(found.iter().any(|one| one.contains(problem)), "{wrong}: {found:?}");
        }
    }

    #[test]
    fn a_file_of_a_directory_holds_backends_alone() {
        let of = |text: &str| {
            backends_of(text).map_err(|problems| {
                problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
            })
        };
        let one = "[[backends]]\nname = \"a\"\nurl = \"https://a:1\"\nengine = \"vllm\"\n\
                   connector = \"nixl\"\nkv_role = \"kv_producer\"\n";
        assert_eq!(of(one).unwrap().len(), 1, "decoders and authorities are elsewhere");
        assert_eq!(of("# none at present\nbackends = []\n").unwrap().len(), 0);
        for (wrong, problem) in [
            (format!("[server]\nthreads = 1\n{one}"), "server: belongs in the settings file"),
            (format!("{one}{one}"), "backends[1].name: is the same as"),
            (format!("{one}[backends.dns]\nname = \"n\"\n"), "backends[0]: describes"),
            ("[[backends]]\nname = 1".to_owned(), "backends[0].name"),
            ("[[backends".to_owned(), "not TOML"),
            // A writer has truncated the file, and writes its backends next.
            (String::new(), "has no [[backends]]"),
            ("# engines\n\n".to_owned(), "has no [[backends]]"),
            ("backends = []\nserver = {}\n".to_owned(), "server: belongs in the settings file"),
        ] {
            let found = of(&wrong).unwrap_err();
            assert!(found.contains(problem), "{wrong}: {found}");
        }
    }
}
