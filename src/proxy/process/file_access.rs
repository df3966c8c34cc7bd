//! Access to single files that settings name: bounded reads, secrets, certificate authorities, and
//! checks that a file can be written.

use std::io::Read;
use std::path::{Path, PathBuf};
use thiserror::Error;
use tidegate_filters::TokenizerError;
use tokio_rustls::rustls::RootCertStore;

use crate::control::operator_roles::StateError;
use crate::tls::TlsError;

/// Shortest secret in a key file, in bytes: 128 bits if it is random.
const SECRET_BYTES_MIN: usize = 16;

/// Why a file cannot be used.
#[derive(Debug, Error)]
pub enum FileProblem {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The state file cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// It cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A key file without a usable secret. The message never quotes the secret.
    #[error("{path} {problem}")]
    Secret {
        /// The file.
        path: PathBuf,
        /// The cause, which follows the path in a sentence.
        problem: &'static str,
    },
    /// A broken tokenizer or tokenizer configuration.
    #[error("{path}: {source}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: TokenizerError,
    },
    /// A broken certificate chain, private key or set of certificate authorities.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The single secret in a key file. A byte order mark, blanks and line ends around it, which
/// editors and Windows tools add, are removed. More than one line is an error, as no header value
/// can contain a line end.
///
/// # Errors
/// [`FileProblem::Read`], [`FileProblem::Secret`].
pub fn secret(path: &Path) -> Result<String, FileProblem> {
    one_of(path, secret_in)
}

/// Like [`secret`], for a key that an engine was started with: its length is not checked.
pub(super) fn engine_secret(path: &Path) -> Result<String, FileProblem> {
    one_of(path, line_in)
}

fn one_of(
    path: &Path,
    find: impl Fn(&str) -> Result<&str, &'static str>,
) -> Result<String, FileProblem> {
    let text = text(path)?;
    let secret = find(&text).map(str::to_owned);
    secret.map_err(|problem| FileProblem::Secret { path: path.to_owned(), problem })
}

fn secret_in(text: &str) -> Result<&str, &'static str> {
    let secret = line_in(text)?;
    match secret.len() >= SECRET_BYTES_MIN {
        true => Ok(secret),
        false => Err("holds a key that can be guessed: shorter than 16 bytes"),
    }
}

fn line_in(text: &str) -> Result<&str, &'static str> {
    let secret = text.trim_start_matches('\u{feff}').trim();
    if secret.is_empty() {
        return Err("is empty, expected one key");
    }
    if secret.contains(['\n', '\r']) {
        return Err("holds more than one line, expected one key");
    }
    if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(
            "holds a key that no HTTP header can carry: only visible ASCII without blanks is allowed",
        );
    }
    Ok(secret)
}

/// The certificate authorities in a PEM file.
///
/// # Errors
/// [`FileProblem::Tls`].
pub fn authorities(path: &Path) -> Result<RootCertStore, FileProblem> {
    Ok(crate::tls::read_authorities(path)?)
}

/// Largest file that is read: ten times the largest `tokenizer.json` in use.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Reads a regular file. Devices and pipes are refused before they are opened: settings sent to the
/// admin address may name any path, and such a read may never end.
#[allow(clippy::disallowed_methods, reason = "files that the settings name are read here")]
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, FileProblem> {
    let read = || {
        if !std::fs::metadata(path)?.is_file() {
            return Err(std::io::Error::other("not a regular file"));
        }
        let mut bytes = Vec::new();
        // Files of /proc report a size of 0 and may be unbounded.
        std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > FILE_BYTES_MAX {
            true => Err(std::io::Error::other(format!("larger than {FILE_BYTES_MAX} bytes"))),
            false => Ok(bytes),
        }
    };
    read().map_err(|source| FileProblem::Read { path: path.to_owned(), source })
}

/// Reads a text file.
///
/// # Errors
/// [`FileProblem::Read`].
pub fn text(path: &Path) -> Result<String, FileProblem> {
    String::from_utf8(bytes(path)?).map_err(|error| FileProblem::Read {
        path: path.to_owned(),
        source: std::io::Error::other(error),
    })
}

pub(super) fn has_directory(path: &Path) -> Result<(), FileProblem> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match directory.is_none_or(Path::is_dir) {
        true => Ok(()),
        false => Err(FileProblem::Write {
            path: path.to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        }),
    }
}

/// Checks that the file's directory accepts new files, because a state file is replaced by a
/// rename. The check leaves no file behind.
#[allow(clippy::disallowed_methods, reason = "a file that the settings name")]
pub(super) fn writable(path: &Path) -> Result<(), FileProblem> {
    let mut probe = path.as_os_str().to_owned();
    probe.push(format!(".check-{}", std::process::id()));
    let failed = |source| FileProblem::Write { path: path.to_owned(), source };
    if path.is_dir() {
        return Err(failed(std::io::ErrorKind::IsADirectory.into()));
    }
    std::fs::write(&probe, b"").map_err(failed)?;
    std::fs::remove_file(&probe).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_refused_and_not_read() {
        let error = bytes(Path::new("/dev/zero")).expect_err("a device is refused");
        assert_eq!(error.to_string(), "cannot read /dev/zero: not a regular file");
    }

    #[test]
    fn a_key_file_holds_one_secret_of_16_visible_bytes() {
        let good = "0123456789abcdef";
        for text in [
            good.to_owned(),
            format!("{good}\n"),
            format!("{good}\r\n"),
            format!("\u{feff}{good}"),
            format!("\u{feff}  {good}\t\r\n\n"),
        ] {
            assert_eq!(secret_in(&text), Ok(good), "{text:?}");
        }
        for (text, word) in [
            ("", "empty"),
            ("\u{feff}\r\n", "empty"),
            ("0123456789abcdef\nfedcba9876543210\n", "more than one line"),
            ("0123456789abcdef\rfedcba9876543210", "more than one line"),
            ("0123456789 abcdef", "header"),
            ("0123456789abcdé", "header"),
            ("0123456789abcde", "guessed"),
        ] {
            assert!(secret_in(text).unwrap_err().contains(word), "{text:?}");
        }
    }
}
