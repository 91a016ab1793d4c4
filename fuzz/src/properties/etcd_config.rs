//! Where etcd is and how to speak to it, as URLs and options say.

use dlock_etcd::{ConfigError, Etcd, EtcdOptions};

use super::consul::everything;
use super::store_url::{SECRET, hides_all};

/// A URL or an endpoint, a user, the end of its password and a namespace, a line each; a `*` in the first stands for a secret.
pub fn etcd_config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines();
    let mut line = || lines.next().unwrap_or_default();
    let (place, user, password, namespace) = (line(), line(), line(), line());
    let given = place.replace('*', SECRET);
    for outcome in [EtcdOptions::from_url(&given), EtcdOptions::new().endpoints([&given])] {
        tells_no_secret(&outcome, hides_all(place));
        let Ok(options) = outcome else { continue };
        let told_otherwise = [&given, user, namespace].iter().any(|text| text.contains(SECRET));
        let options = options.user(user, format!("{SECRET}{password}")).namespace(namespace);
        assert!(told_otherwise || !format!("{options:?}").contains(SECRET), "the password is shown: {options:?}");
        match Etcd::new(options) {
            Ok(etcd) => assert!(told_otherwise || !format!("{etcd:?}").contains(SECRET), "the password is shown: {etcd:?}"),
            Err(error) => assert!(told_otherwise || !everything(&error).contains(SECRET), "the password is shown: {error:?}"),
        }
    }
}

fn tells_no_secret(outcome: &Result<EtcdOptions, ConfigError>, hidden: bool) {
    let told = match outcome {
        Ok(options) => format!("{options:?}"),
        Err(error) => everything(error),
    };
    assert!(!hidden || !told.contains(SECRET), "a secret is shown: {told}");
}
