//! What is accepted of options, environment and URLs, and what is said of the rest.

use super::*;

fn from(pairs: &[(&str, &str)]) -> Result<EtcdOptions, ConfigError> {
    EtcdOptions::from_lookup(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
}

fn places(options: &EtcdOptions) -> Vec<(&str, Option<bool>)> {
    options.endpoints.iter().map(|address| (address.place.as_str(), address.tls)).collect()
}

#[test]
fn a_password_with_a_comma_is_not_shown_in_parts() {
    for text in ["etcd://root:se,cret@h:2379", "etcd://h1,root:se,cret@h2"] {
        let told = EtcdOptions::default().at_url(text).unwrap_err().to_string();
        assert!(told.contains("ETCDCTL_USER") && !told.contains("se,") && !told.contains("root"), "{told}");
    }
    let lookup = |name: &str| (name == "ETCDCTL_ENDPOINTS").then(|| "http://root:se,cret@h".to_owned());
    let told = EtcdOptions::from_lookup(lookup).unwrap_err().to_string();
    assert!(told.contains("ETCDCTL_USER") && !told.contains("root"), "{told}");
}

#[test]
fn without_anything_it_is_this_machine() {
    assert_eq!(places(&from(&[]).unwrap()), [("127.0.0.1:2379", None)]);
    assert_eq!(places(&from(&[("ETCDCTL_ENDPOINTS", "")]).unwrap()), [("127.0.0.1:2379", None)]);
}

#[test]
fn endpoints_are_read_as_etcdctl_reads_them() {
    let options = from(&[("ETCDCTL_ENDPOINTS", "a, http://b:2380,https://c:2381/,[::1]:7,[::2]")]).unwrap();
    let read = [("a:2379", None), ("b:2380", Some(false)), ("c:2381", Some(true)), ("[::1]:7", None), ("[::2]:2379", None)];
    assert_eq!(places(&options), read);
}

#[test]
fn urls_name_all_members_of_one_cluster() {
    let at = |url| EtcdOptions::new().at_url(url);
    assert_eq!(places(&at("etcd://h1,h2:7,h3").unwrap()), [("h1:2379", None), ("h2:7", None), ("h3:2379", None)]);
    assert_eq!(places(&at("etcds://h1,h2").unwrap()), [("h1:2379", Some(true)), ("h2:2379", Some(true))]);
    for wrong in ["consul://h", "http://h", "h", "etcd://http://h", "etcd://", "etcd://h1,,h2", "etcd://h/prefix"] {
        assert!(matches!(at(wrong), Err(ConfigError::Endpoint { .. })), "{wrong}");
    }
}

#[test]
fn a_wrong_endpoint_is_told_with_what_is_wrong() {
    for (endpoint, reason) in [
        ("ftp://h", "scheme"),
        ("h:port", "no number"),
        ("h:0", "no host"),
        (":2379", "no host"),
        ("::1:2379", "brackets"),
        ("h/path", "end after the port"),
        ("two words", "no host"),
    ] {
        let error = EtcdOptions::new().endpoints([endpoint]).unwrap_err().to_string();
        assert!(error.contains(reason), "{endpoint}: {error}");
    }
    let none: [&str; 0] = [];
    assert!(matches!(EtcdOptions::new().endpoints(none), Err(ConfigError::NoEndpoint)));
}

#[test]
fn a_password_in_an_endpoint_is_refused_and_not_repeated() {
    for text in ["http://u:secret@h:2379", "u:secret@h", "u:se?cret@h"] {
        let error = EtcdOptions::new().endpoints([text]).unwrap_err().to_string();
        assert!(!error.contains("secret") && !error.contains("cret@"), "{error}");
    }
    let error = EtcdOptions::new().at_url("etcd://u:secret@h").unwrap_err().to_string();
    assert!(error.contains("ETCDCTL_USER") && !error.contains("secret"), "{error}");
}

#[test]
fn users_come_with_their_passwords_and_are_not_shown_with_them() {
    let user = |pairs: &[_]| from(pairs).map(|options| options.user);
    let both = Some(("u".to_owned(), "p:q".to_owned()));
    assert_eq!(user(&[("ETCDCTL_USER", "u:p:q")]).unwrap(), both);
    assert_eq!(user(&[("ETCDCTL_USER", "u"), ("ETCDCTL_PASSWORD", "p:q")]).unwrap(), both);
    assert!(matches!(user(&[("ETCDCTL_USER", "u")]), Err(ConfigError::NoPassword)));
    let shown = format!("{:?}", from(&[("ETCDCTL_USER", "u:secret")]).unwrap());
    assert!(shown.contains("\"u\"") && !shown.contains("secret"), "{shown}");
}

#[test]
fn what_would_be_ignored_is_refused() {
    for name in UNSUPPORTED {
        assert!(matches!(from(&[(name, "true")]), Err(ConfigError::Unsupported { name: told }) if told == name));
        from(&[(name, "false")]).unwrap();
    }
}

#[test]
fn a_certificate_and_its_key_come_together() {
    assert!(matches!(from(&[("ETCDCTL_CERT", "c.pem")]), Err(ConfigError::HalfCertificate)));
    assert!(matches!(from(&[("ETCDCTL_KEY", "k.pem")]), Err(ConfigError::HalfCertificate)));
}

#[test]
fn a_certificate_turns_tls_on_and_nobody_is_spoken_to_without_it() {
    let options = from(&[("ETCDCTL_CACERT", "/nowhere/ca.pem"), ("ETCDCTL_ENDPOINTS", "h")]).unwrap();
    assert!(options.tls);
    let plain = from(&[("ETCDCTL_CACERT", "/nowhere/ca.pem"), ("ETCDCTL_ENDPOINTS", "http://h")]).unwrap();
    let error = plain.dialled().unwrap_err().to_string();
    assert!(error.contains("without TLS"), "{error}");
}

#[cfg(feature = "_tls")]
#[test]
fn a_certificate_file_that_holds_none_is_named() {
    let path = std::env::temp_dir().join(format!("dlock-etcd-no-certificate-{}", std::process::id()));
    std::fs::write(&path, "nothing").unwrap();
    let error = EtcdOptions::new().ca_certificate(&path).dialled().unwrap_err().to_string();
    std::fs::remove_file(&path).unwrap();
    assert!(error.contains("dlock-etcd-no-certificate"), "{error}");
    let error = EtcdOptions::new().ca_certificate("/nowhere/ca.pem").dialled().unwrap_err().to_string();
    assert!(error.contains("/nowhere/ca.pem"), "{error}");
}

#[cfg(not(feature = "_tls"))]
#[test]
fn tls_that_is_not_compiled_in_is_told_with_the_feature() {
    let error = EtcdOptions::new().at_url("etcds://h").unwrap().dialled().unwrap_err().to_string();
    assert!(error.contains("tls-aws-lc"), "{error}");
}

#[test]
fn no_time_is_no_limit() {
    assert!(matches!(EtcdOptions::new().attempt_limit(Duration::ZERO), Err(ConfigError::NoTime)));
    assert!(matches!(EtcdOptions::new().connect_limit(Duration::ZERO), Err(ConfigError::NoTime)));
}

#[cfg(unix)]
#[test]
fn a_variable_that_cannot_be_read_is_not_taken_for_unset() {
    use std::os::unix::ffi::OsStringExt;

    let garbled = |name: &str| (name == "ETCDCTL_CACERT").then(|| OsString::from_vec(vec![b'/', 0xFF]));
    assert_eq!(unreadable(&SUPPORTED, garbled), Some("ETCDCTL_CACERT"));
    assert_eq!(unreadable(&SUPPORTED[..1], |_| Some(OsString::from("text"))), None);
}
