//! Where Consul is and how to speak to it, as environment and URL say.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::config::{Address, ConfigError, ConsulOptions};
use super::consul::everything;
use super::store_url::{SECRET, hides_all};

/// Lines `NAME=value` as the environment, and one named `URL` as the URL; a `*` in them stands for a secret.
pub fn consul_config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let given: HashMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    // The files that the fuzzer would name are not its own.
    let given = |name: &str| given.get(name).copied().filter(|_| name != "CONSUL_HTTP_TOKEN_FILE");
    let lookup = |name: &str| given(name).map(|value| value.replace('*', SECRET));

    let outcome = ConsulOptions::from_lookup(lookup);
    // Names of files, of servers and of parts of Consul are told as they are.
    let files = ["CONSUL_CACERT", "CONSUL_CAPATH", "CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY"];
    let mut shown = files.iter().chain(&["CONSUL_TLS_SERVER_NAME", "CONSUL_NAMESPACE", "CONSUL_PARTITION"]);
    let shows_some = shown.any(|name| given(name).is_some_and(|value| value.contains('*')));
    let hidden = given("CONSUL_HTTP_ADDR").is_none_or(hides_all) && !shows_some;
    tells_no_secret(&outcome, hidden);
    if let Ok(options) = &outcome {
        says_what_was_given(options, given("CONSUL_HTTP_ADDR").filter(|address| !address.is_empty()), &lookup);
        as_it_is_shown(options);
    }

    let Some(url) = given("URL") else { return };
    let elsewhere = |name: &str| lookup(name).filter(|_| name != "CONSUL_HTTP_ADDR");
    let Ok(options) = ConsulOptions::from_lookup(elsewhere) else { return };
    let tls = options.tls;
    let outcome = options.at_url(&url.replace('*', SECRET));
    tells_no_secret(&outcome, hides_all(url) && !shows_some);
    if let Ok(options) = &outcome {
        let (scheme, _) = url.split_once("://").expect("a URL has a scheme");
        if let Address::Http(address) = &options.address {
            let secure = tls || scheme == "consul+https";
            assert_eq!(address.scheme(), if secure { "https" } else { "http" }, "{url:?}");
            let ours = if secure { 8501 } else { 8500 };
            assert_eq!(address.port_or_known_default(), Some(port(url).unwrap_or(ours)), "{url:?} is read as {}", options.address);
        }
        as_it_is_shown(options);
    }
}

fn tells_no_secret(outcome: &Result<ConsulOptions, ConfigError>, hidden: bool) {
    let told = match outcome {
        // All of it is a file's name.
        Ok(options) if matches!(options.address, Address::Unix(_)) => return,
        Ok(options) => format!("{options:?}"),
        Err(error) => everything(error),
    };
    assert!(!hidden || !told.contains(SECRET), "a secret is shown: {told}");
}

fn says_what_was_given(options: &ConsulOptions, address: Option<&str>, lookup: &impl Fn(&str) -> Option<String>) {
    let one_of = |name: &str, words: &[&str]| lookup(name).is_some_and(|value| words.contains(&value.as_str()));
    let (truth, lies) = (["1", "t", "T", "true", "TRUE", "True"], ["0", "f", "F", "false", "FALSE", "False"]);
    assert_eq!(options.verify, !one_of("CONSUL_HTTP_SSL_VERIFY", &lies), "verification is switched off by name alone");
    assert_eq!(options.tls, one_of("CONSUL_HTTP_SSL", &truth));
    assert_eq!(options.token, lookup("CONSUL_HTTP_TOKEN").filter(|token| !token.is_empty()));
    if let Address::Http(read) = &options.address {
        assert!(!options.tls || read.scheme() == "https", "TLS is asked for, and not used at {}", options.address);
        let standard = if read.scheme() == "https" { 443 } else { 80 };
        let expected = address.map_or(8500, |address| port(address).unwrap_or(standard));
        assert_eq!(read.port_or_known_default(), Some(expected), "{address:?} is read as {}", options.address);
    }
    if let Some(auth) = lookup("CONSUL_HTTP_AUTH").filter(|auth| !auth.is_empty()) {
        let header = options.authorization().expect("user and password are sent");
        let sent = STANDARD.decode(header.strip_prefix("Basic ").expect("as basic authentication")).expect("in base64");
        let whole = if auth.contains(':') { auth } else { format!("{auth}:") };
        assert_eq!(sent, whole.as_bytes());
    }
}

/// An address that is shown can be given back.
fn as_it_is_shown(options: &ConsulOptions) {
    let shown = options.address.to_string();
    let again = ConsulOptions::new().address(&shown).unwrap_or_else(|error| panic!("{shown:?} is shown, and refused: {error}"));
    assert!(again.address == options.address, "{shown:?} is shown for another address");
}

/// The port that an address names, read the plain way.
fn port(address: &str) -> Option<u16> {
    let place = address.split_once("://").map_or(address, |(_, place)| place);
    let place: String = place.chars().filter(|c| !matches!(c, '\t' | '\r')).collect();
    let place = place.trim_start_matches(['/', '\\']).split(['/', '\\', '?', '#']).next().unwrap_or_default();
    let (_, port) = place.rsplit_once(':')?;
    port.trim_matches(|c: char| c <= ' ').parse().ok()
}
