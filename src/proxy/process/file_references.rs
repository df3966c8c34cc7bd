//! Files that settings name, by setting: which ones a reload reads, and which ones settings that
//! arrive over HTTP may name. Pure, except for the working directory.

use std::path::{Component, Path, PathBuf, absolute};
use tidegate_settings::{BackendSettings, Settings};

/// A file and the setting that names it.
#[derive(Debug, PartialEq, Eq)]
pub struct FileReference<'a> {
    /// Path of the setting, for example `auth.keys[0].key_file`.
    pub setting: String,
    /// The file.
    pub path: &'a Path,
}

/// Files of settings that a reload changes, except the key files of backends.
pub fn reloadable(settings: &Settings) -> Vec<FileReference<'_>> {
    let mut named = Vec::new();
    for (i, key) in settings.auth.keys.iter().enumerate() {
        named.push((format!("auth.keys[{i}].key_file"), &key.key_file));
    }
    for (i, model) in settings.models.iter().enumerate() {
        named.push((format!("models[{i}].tokenizer"), &model.tokenizer));
        named.push((format!("models[{i}].tokenizer_config"), &model.tokenizer_config));
        named.push((format!("models[{i}].chat_template"), &model.chat_template));
    }
    named.push(("admin.token_file".to_owned(), &settings.admin.token_file));
    present(named)
}

/// Key files of backends.
pub fn of_backends(backends: &[BackendSettings]) -> Vec<FileReference<'_>> {
    let mut named = Vec::new();
    for (i, backend) in backends.iter().enumerate() {
        named.push((format!("backends[{i}].api_key_file"), &backend.api_key_file));
        named.push((format!("backends[{i}].disagg_key_file"), &backend.disagg_key_file));
    }
    present(named)
}

fn present(named: Vec<(String, &Option<PathBuf>)>) -> Vec<FileReference<'_>> {
    let named = named.into_iter();
    named
        .filter_map(|(setting, path)| Some(FileReference { setting, path: path.as_deref()? }))
        .collect()
}

/// Files of settings that need a restart: a version of the file without them is refused as well.
pub fn fixed(settings: &Settings) -> Vec<&Path> {
    let gateways = &settings.gateways;
    let tls = [&settings.server.tls, &settings.admin.tls, &gateways.tls].into_iter().flatten();
    let upstream = &settings.upstream;
    let named = tls.flat_map(|tls| [Some(&tls.cert), Some(&tls.key), tls.client_ca_file.as_ref()]);
    let others =
        [&upstream.ca_file, &upstream.client_cert, &upstream.client_key, &gateways.token_file];
    named.flatten().chain(others.into_iter().flatten()).map(PathBuf::as_path).collect()
}

/// The files that settings which arrive over HTTP may name, so that a request cannot probe or send
/// any file of the host.
pub struct Permitted<'a> {
    in_force: Vec<FileReference<'a>>,
    directory: Option<PathBuf>,
}

impl<'a> Permitted<'a> {
    /// Files that the settings in force name in the same setting, and files in the directory of
    /// their configuration file or below it, if that directory is tidegate's own.
    pub fn by(in_force: &'a Settings) -> Permitted<'a> {
        let file = in_force.file.as_deref().and_then(|file| absolute(file).ok());
        let directory = file.and_then(|file| file.parent().map(Path::to_owned));
        let directory = directory.filter(|directory| is_own(directory));
        let mut all = reloadable(in_force);
        all.extend(of_backends(&in_force.backends));
        Permitted { in_force: all, directory }
    }

    /// Returns a sentence for each file that may not be named.
    pub fn problems(&self, named: &[FileReference<'_>]) -> Vec<String> {
        named.iter().filter(|one| !self.admits(one)).map(FileReference::refusal).collect()
    }

    fn admits(&self, wanted: &FileReference<'_>) -> bool {
        let same = |known: &FileReference<'_>| {
            known.path == wanted.path && field(&known.setting) == field(&wanted.setting)
        };
        self.in_force.iter().any(same) || self.is_beside(wanted.path)
    }

    /// Whether the file lies in the configuration file's directory or below it. A step to the parent
    /// directory is refused, as are hidden names (`.ssh`).
    fn is_beside(&self, path: &Path) -> bool {
        let Some(directory) = &self.directory else { return false };
        let Ok(path) = absolute(path) else { return false };
        let Ok(below) = path.strip_prefix(directory) else { return false };
        let is_plain = |part: Component<'_>| match part {
            Component::Normal(name) => !name.as_encoded_bytes().starts_with(b"."),
            _ => false,
        };
        path != *directory && below.components().all(is_plain)
    }
}

impl FileReference<'_> {
    fn refusal(&self) -> String {
        format!(
            "{}: {} is neither named by this setting in force nor in the configuration file's own \
             directory, such as /etc/tidegate: over HTTP it is not read (run tidegate check on the host)",
            self.setting,
            self.path.display()
        )
    }
}

/// Whether a part of the path is named after this program. A configuration file in `/etc` or a home
/// directory is beside files of others.
fn is_own(directory: &Path) -> bool {
    let is_named = |part: Component<'_>| match part {
        Component::Normal(name) => name.as_encoded_bytes().starts_with(b"tidegate"),
        _ => false,
    };
    directory.components().any(is_named)
}

/// The setting without list indexes and what precedes the last part.
fn field(setting: &str) -> (&str, &str) {
    let section = setting.split(['.', '[']).next().unwrap_or_default();
    (section, setting.rsplit('.').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKEND: &str = "[[backends]]\nname = \"a\"\nurl = \"http://h:1\"\n";

    fn settings(text: &str, file: Option<&str>) -> Settings {
        let settings = Settings::parse(&format!("{text}{BACKEND}")).unwrap();
        Settings { file: file.map(PathBuf::from), ..settings }
    }

    fn refused(in_force: &Settings, wanted: &Settings) -> Vec<String> {
        let mut named = reloadable(wanted);
        named.extend(of_backends(&wanted.backends));
        let problems = Permitted::by(in_force).problems(&named);
        problems.iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
    }

    fn key(path: &str) -> String {
        format!("[[auth.keys]]\nname = \"k\"\nkey_file = \"{path}\"\n")
    }

    #[test]
    fn a_file_in_the_directory_of_the_configuration_is_permitted() {
        let in_force = settings("", Some("/etc/tidegate/tidegate.toml"));
        for good in ["/etc/tidegate/a", "/etc/tidegate/keys/a", "/etc/tidegate/./a"] {
            assert_eq!(refused(&in_force, &settings(&key(good), None)), [""; 0], "{good}");
        }
        for wrong in [
            "/etc/passwd",
            "/etc/tidegate/../passwd",
            "/etc/tidegate/keys/../../passwd",
            "/etc/tidegate2/a",
            "/etc/tidegate",
            "/etc/tidegate/.ssh/id",
            "a",
            "../a",
        ] {
            let expected = format!("auth.keys[0].key_file: {wrong}");
            assert_eq!(refused(&in_force, &settings(&key(wrong), None)), [expected]);
        }
        // Beside files of others.
        for file in
            [None, Some("/tidegate.toml"), Some("/etc/tidegate.toml"), Some("/etc/a/b.toml")]
        {
            let in_force = settings("", file);
            for wrong in ["/etc/passwd", "/etc/a/key"] {
                assert_eq!(refused(&in_force, &settings(&key(wrong), None)).len(), 1, "{file:?}");
            }
        }
    }

    #[test]
    fn a_file_is_permitted_in_the_setting_that_names_it() {
        let in_force =
            settings(&format!("{}[admin]\ntoken_file = \"/run/token\"\n", key("/run/key")), None);
        let same = settings(
            &format!(
                "[[auth.keys]]\nname = \"x\"\nkey = \"0123456789abcdef\"\n{}",
                key("/run/key")
            ),
            None,
        );
        assert_eq!(refused(&in_force, &same), [""; 0], "the position may differ");
        let moved = settings("[admin]\ntoken_file = \"/run/key\"\n", None);
        assert_eq!(refused(&in_force, &moved), ["admin.token_file: /run/key"]);
        let mut sent = settings("", None);
        sent.backends[0].api_key_file = Some(PathBuf::from("/run/token"));
        assert_eq!(refused(&in_force, &sent), ["backends[0].api_key_file: /run/token"]);
        assert_eq!(refused(&sent, &sent), [""; 0]);
    }
}
