//! The transport that production uses: reqwest, with a client for each lane.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, ClientBuilder};
use thiserror::Error;
use tower::util::MapFutureLayer;
use url::{Host, Position, Url};

use crate::config::{Address, ConfigError, ConsulOptions, TlsOptions};
use crate::connector::{Spare, for_request};
use crate::tls;
use crate::transport::{Answer, Lane, Method, Request, Transport, TransportError, TransportErrorKind};

/// HTTP to one agent, over connections of their own for what must not queue behind anything else.
pub(crate) struct Http {
    /// Where the agent is, without a path.
    base: Url,
    /// Requests that are answered at once.
    short: Client,
    /// Requests that wait.
    waiting: Client,
    /// Sessions: one warm connection.
    sessions: Client,
    /// Sessions, after a request that was not answered: a new connection for each request. The one that hangs is closed with its request.
    fresh: Client,
}

/// How long a connection is kept that nothing travels on; it may be twice as long until that is noticed. Held locks are looked after more often than that by
/// default, so that one connection stays warm for as long as something is held, and those that only a burst needed do not stay behind.
const IDLE: Duration = Duration::from_secs(8);

/// How long a connection may take to open.
const OPENING: Duration = Duration::from_secs(1);

impl Http {
    pub(crate) fn new(options: &ConsulOptions) -> Result<Self, ConfigError> {
        Self::opening_within(options, OPENING)
    }

    fn opening_within(options: &ConsulOptions, limit: Duration) -> Result<Self, ConfigError> {
        let base = match (&options.address, Named::of(options)) {
            (Address::Http(_), Some(named)) => named.base,
            (Address::Http(url), None) => url.clone(),
            (Address::Unix(_), _) => Url::parse("http://localhost").expect("this is a URL"),
        };
        let build = |builder: ClientBuilder| builder.build().map_err(|error| ConfigError::Client(error.into()));
        let client = || client(options).map(|client| client.connect_timeout(limit));
        let brief = || client().map(|client| client.pool_idle_timeout(IDLE));
        // Without TLS a connection opens as soon as an answer comes, so that hardly one is too many, and the layer costs every request a dozen allocations.
        let short = if base.scheme() == "https" { sparing(brief()?) } else { brief()? };
        let (short, waiting) = (build(short)?, build(sparing(brief()?))?);
        let (sessions, fresh) = (build(client()?)?, build(client()?.pool_max_idle_per_host(0))?);
        Ok(Self { base, short, waiting, sessions, fresh })
    }

    /// The address of a request, of which the host is not parsed anew.
    fn url(&self, target: &str) -> Url {
        let mut url = self.base.clone();
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        url.set_path(path);
        url.set_query(query);
        url
    }

    fn client(&self, lane: Lane) -> &Client {
        match lane {
            Lane::Short => &self.short,
            Lane::Waiting => &self.waiting,
            Lane::Session { fresh: false } => &self.sessions,
            Lane::Session { fresh: true } => &self.fresh,
        }
    }
}

#[async_trait]
impl Transport for Http {
    async fn send(&self, request: Request) -> Result<Answer, TransportError> {
        let client = self.client(request.lane);
        let url = self.url(&request.target);
        let sending = match request.method {
            Method::Get => client.get(url),
            // A body in memory has a length.
            Method::Put => client.put(url).body(request.body),
        };
        let answer = for_request(sending.timeout(request.limit).send()).await.map_err(unanswered)?;
        let (status, headers) = (answer.status().as_u16(), answer.headers());
        let index = headers.get("x-consul-index").and_then(|value| value.to_str().ok()?.parse().ok());
        let body = answer.text().await.map_err(unanswered)?;
        Ok(Answer { status, index, body })
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

fn unanswered(error: reqwest::Error) -> TransportError {
    let error = error.without_url();
    if is_refused_certificate(&error) {
        // Told in the middle of a request, which an agent that lets nobody in has not read.
        return TransportError::new(TransportErrorKind::NotConnected, RefusedCertificate(error));
    }
    let kind = if error.is_connect() {
        TransportErrorKind::NotConnected
    } else if error.is_builder() {
        TransportErrorKind::Unusable
    } else if error.is_timeout() {
        TransportErrorKind::TimedOut
    } else {
        TransportErrorKind::Broken
    };
    TransportError::new(kind, error)
}

/// The agent asks for a certificate (`verify_incoming`), and was given none or none that it trusts.
#[derive(Debug, Error)]
#[error("the agent lets nobody in without a client certificate that it trusts; set CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY")]
struct RefusedCertificate(#[source] reqwest::Error);

fn is_refused_certificate(error: &(dyn Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.any(|cause| {
        let told = cause.to_string();
        let alert = told.rsplit_once("received fatal alert: ").map(|(_, alert)| alert);
        alert.is_some_and(|alert| alert.contains("Certificate") || alert == "UnknownCA")
    })
}

fn client(options: &ConsulOptions) -> Result<ClientBuilder, ConfigError> {
    let mut headers = HeaderMap::new();
    let mut secret = |name: HeaderName, value: Option<String>, what| -> Result<(), ConfigError> {
        let Some(value) = value else { return Ok(()) };
        let mut value = HeaderValue::from_str(&value).map_err(|_| ConfigError::Secret { what })?;
        value.set_sensitive(true);
        headers.insert(name, value);
        Ok(())
    };
    secret(HeaderName::from_static("x-consul-token"), options.token.clone(), "token")?;
    secret(AUTHORIZATION, options.authorization(), "user and password")?;
    let named = Named::of(options);
    if let Some(named) = &named {
        let host = HeaderValue::from_str(&named.host).map_err(|error| ConfigError::Client(error.into()))?;
        headers.insert(HOST, host);
    }
    let mut builder = Client::builder()
        .default_headers(headers)
        .tcp_keepalive(Duration::from_secs(10))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy();
    if let Address::Unix(path) = &options.address {
        builder = builder.unix_socket(path.clone());
    }
    let TlsOptions { authorities, client, .. } = &options.certificates;
    if let Some(named) = named {
        builder = builder.dns_resolver(named.place);
    }
    if let Some(authorities) = tls::authorities(authorities)? {
        builder = builder.tls_certs_only(authorities);
    }
    if let Some((certificate, key)) = client {
        builder = builder.identity(tls::identity(certificate, key)?);
    }
    if !options.verify {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    Ok(builder)
}

/// A client that opens hardly more connections than its requests need.
fn sparing(client: ClientBuilder) -> ClientBuilder {
    let spare = Spare::new();
    client.connector_layer(MapFutureLayer::new(move |opening| spare.clone().open(opening)))
}

/// An agent that is spoken to under another name than its address has. That name stands in the URL, from which TLS takes it; the
/// connection and the header `Host` go by the address.
struct Named {
    base: Url,
    host: String,
    place: Place,
}

impl Named {
    /// What is to be done, unless the name is that of the address or TLS is not spoken.
    fn of(options: &ConsulOptions) -> Option<Self> {
        let name = options.certificates.server_name.as_deref()?;
        let Address::Http(url) = &options.address else { return None };
        let host = url.host().filter(|host| *host != Host::Domain(name))?;
        if url.scheme() != "https" {
            return None;
        }
        let mut named = url.clone();
        named.set_host(Some(name)).ok()?;
        Some(Self { base: named, host: url[Position::BeforeHost..Position::AfterPort].to_owned(), place: Place(host.to_owned()) })
    }
}

/// Finds the agent at its address, whatever name is asked for.
struct Place(Host<String>);

impl Resolve for Place {
    fn resolve(&self, _: Name) -> Resolving {
        let host = self.0.clone();
        Box::pin(async move {
            // The port is that of the URL.
            let found: Vec<SocketAddr> = match host {
                Host::Domain(name) => tokio::net::lookup_host((name, 0)).await?.collect(),
                Host::Ipv4(ip) => vec![(ip, 0).into()],
                Host::Ipv6(ip) => vec![(ip, 0).into()],
            };
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use dlock_testkit::servers::{ConsulAgent, http};
    use futures_util::future;
    use tokio::io::copy_bidirectional;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn a_token_that_no_header_can_carry_is_refused_without_being_shown() {
        let error = Http::new(&ConsulOptions::new().token("line\nbreak")).unwrap_err();
        assert!(!format!("{error:?} {error}").contains("break"), "{error:?}");
    }

    #[test]
    fn the_address_of_a_request_is_that_of_the_agent_with_its_target() {
        for (address, begins) in [
            ("http://127.0.0.1:8500", "http://127.0.0.1:8500"),
            ("https://[::1]:8501/", "https://[::1]:8501"),
            ("unix:///run/consul.sock", "http://localhost"),
        ] {
            let http = Http::new(&ConsulOptions::new().address(address).unwrap()).unwrap();
            for target in ["/v1/txn", "/v1/kv//a%20b/%2F/c%3Fd%25/?recurse&index=7&wait=55s", "/v1/txn?consistent&dc=d%261"] {
                assert_eq!(http.url(target).as_str(), format!("{begins}{target}"));
            }
        }
    }

    #[tokio::test]
    async fn connections_that_nobody_waits_for_any_more_are_not_all_opened() {
        let agent = ConsulAgent::builder().tls().start().await.unwrap();
        let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let accept = async || between.accept().await.unwrap().0;
        let relay = async |mut client: TcpStream| {
            let mut agent = TcpStream::connect(agent.tls_address()).await?;
            copy_bidirectional(&mut client, &mut agent).await
        };
        let address = format!("https://{}", between.local_addr().unwrap());
        let options = ConsulOptions::new().address(&address).unwrap().ca_certificate(agent.ca_certificate().unwrap());
        // Until the requests are done nobody answers on some connections, however long that takes.
        let consul = Http::opening_within(&options, Duration::from_secs(600)).unwrap();
        let wait = async |key, index| {
            let target = format!("/v1/kv/{key}?index={index}&wait=30s");
            consul.send(Request::new(Method::Get, target, Lane::Waiting, Duration::from_secs(60))).await.unwrap()
        };
        // What does not change is no news.
        let put = async |key, value| http(agent.address(), "PUT", &format!("/v1/kv/{key}"), &[], value).await.unwrap();
        for key in ["a", "b", "c"] {
            put(key, "old").await;
        }

        let first = async { relay(accept().await).await };
        let requests = async {
            let index = wait("c", 0).await.index.unwrap();
            // Three wait, and one connection is there. Two are begun, on which nobody answers before that one has served all.
            let (begun, ..) = tokio::join!(
                async {
                    let begun = [accept().await, accept().await];
                    put("a", "new").await;
                    begun
                },
                async {
                    wait("a", index).await;
                    put("b", "new").await;
                },
                async {
                    wait("b", index).await;
                    put("c", "new").await;
                },
                wait("c", index),
            );
            begun
        };
        let begun = tokio::select! {
            begun = requests => begun,
            ended = first => panic!("{ended:?}"),
        };
        let closed = future::select_all(begun.map(relay).map(Box::pin));
        // Sooner than what is idle would be closed.
        _ = tokio::time::timeout(IDLE / 2, closed).await.expect("one was to be given up");
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_lets_in_and_says_nothing_is_not_connected_to() {
        let agent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://{}", agent.local_addr().unwrap());
        let consul = Http::new(&ConsulOptions::new().address(&address).unwrap()).unwrap();
        let began = Instant::now();
        let request = Request::new(Method::Get, "/v1/kv/k", Lane::Short, Duration::from_secs(60));
        assert_eq!(consul.send(request).await.unwrap_err().kind, TransportErrorKind::NotConnected);
        assert_eq!(began.elapsed().as_secs(), 1);
    }

    #[test]
    fn only_an_alert_about_certificates_says_that_one_is_wanted() {
        let told = |text: &str| is_refused_certificate(&std::io::Error::other(text.to_owned()));
        for alert in ["BadCertificate", "CertificateRequired", "UnknownCA"] {
            assert!(told(&format!("connection error: received fatal alert: {alert}")), "{alert}");
        }
        for other in ["connection reset by peer", "received fatal alert: BadRecordMac", "invalid peer certificate: UnknownIssuer"] {
            assert!(!told(other), "{other}");
        }
    }

    #[test]
    fn a_name_for_tls_changes_neither_the_place_nor_the_host_header() {
        let named = |address: &str| {
            let options = ConsulOptions::new().address(address).unwrap().tls_server_name("server.dc1.consul").unwrap();
            Named::of(&options).map(|named| (named.base.to_string(), named.host, named.place.0.to_string()))
        };
        for (address, base, host, place) in [
            ("https://10.0.0.1:8501", "https://server.dc1.consul:8501/", "10.0.0.1:8501", "10.0.0.1"),
            ("https://[::1]:8501", "https://server.dc1.consul:8501/", "[::1]:8501", "[::1]"),
            ("https://agent", "https://server.dc1.consul/", "agent", "agent"),
        ] {
            assert_eq!(named(address), Some((base.to_owned(), host.to_owned(), place.to_owned())));
        }
        for own in ["http://10.0.0.1:8500", "https://server.dc1.consul:8501", "unix:///run/consul.sock"] {
            assert_eq!(named(own), None, "{own}");
        }
    }
}
