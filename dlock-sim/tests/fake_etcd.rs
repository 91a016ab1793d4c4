//! The fake etcd against a real one: the same calls of the same client to both bring the same answers, revisions, statuses and texts.
#![allow(missing_docs)]

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use dlock_etcd::Dialer;
use dlock_sim::wire::etcd::FakeEtcd;
use dlock_testkit::servers::EtcdServer;
use etcd_client::{
    Channel, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, GetOptions, GetResponse, KeyValue,
    LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, TxnResponse,
    WatchFilterType, WatchOptions, WatchResponse,
};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tonic::transport::Endpoint;
use tower::service_fn;

const KEYS: [&str; 4] = ["k/", "k/a", "k/b", "k0"];
const SOON: Duration = Duration::from_secs(10);

/// A real member and a fake one, with a client of each.
struct Both {
    _server: EtcdServer,
    real: Client,
    fake: Client,
    said: String,
    /// How both refused.
    refused: Vec<String>,
}

/// A call that means the same to both.
#[derive(Clone, Debug)]
enum Asked {
    Txn(Txn),
    Get(String, GetOptions),
    Put(String, i64),
    Delete(String, bool),
    Grant(i64, i64),
    Revoke(i64),
    KeepAlive(i64),
    TimeToLive(i64),
    Compact(i64),
}

impl Both {
    async fn start() -> Self {
        let server = EtcdServer::builder().default_timing().start().await.unwrap();
        let options = Some(ConnectOptions::new().with_require_leader(true));
        let real = Client::connect([server.address().to_string()], options.clone()).await.unwrap();
        let dialer = FakeEtcd::start().dialer();
        let dial = service_fn(move |_| {
            let dialer: Arc<dyn Dialer> = Arc::clone(&dialer);
            async move { dialer.dial("fake:2379").await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://fake:2379").connect_with_connector(dial).await.unwrap();
        let fake = Client::from_channel(Channel::Tonic(channel), options).await.unwrap();
        Self { _server: server, real, fake, said: String::new(), refused: Vec::new() }
    }

    /// Asks both for the same, and compares what comes back.
    async fn ask(&mut self, asked: Asked) -> String {
        _ = writeln!(self.said, "{asked:?}");
        let (real, fake) = (answer(&self.real, asked.clone()).await, answer(&self.fake, asked).await);
        assert_eq!(real, fake, "real and fake, after:\n{}", self.said);
        if let Some(refusal) = real.strip_prefix("refused ") {
            self.refused.push(refusal.to_owned());
        }
        real
    }

    /// Watches the same at both, until `last` has changed, and compares what is told.
    async fn watch(&mut self, key: &str, options: WatchOptions, last: &str) -> Vec<String> {
        _ = writeln!(self.said, "watch {key:?} {options:?}");
        let real = timeout(SOON, told(&self.real, key, options.clone(), last)).await.expect("the real one tells");
        let fake = timeout(SOON, told(&self.fake, key, options, last)).await.expect("the fake one tells");
        assert_eq!(real, fake, "real and fake, after:\n{}", self.said);
        real
    }
}

async fn answer(client: &Client, asked: Asked) -> String {
    let (mut kv, mut lease) = (client.kv_client(), client.lease_client());
    let said = match asked {
        Asked::Txn(txn) => kv.txn(txn).await.map(|answer| of_txn(&answer)),
        Asked::Get(key, options) => kv.get(key, Some(options)).await.map(|answer| of_get(&answer)),
        Asked::Put(key, lease) => {
            let put = kv.put(key, "v", Some(PutOptions::new().with_lease(lease))).await;
            put.map(|answer| format!("put at {}", answer.header().unwrap().revision()))
        }
        Asked::Delete(key, prefix) => {
            let options = if prefix { DeleteOptions::new().with_prefix() } else { DeleteOptions::new() };
            let deleted = kv.delete(key, Some(options)).await;
            deleted.map(|answer| format!("deleted {} at {}", answer.deleted(), answer.header().unwrap().revision()))
        }
        Asked::Grant(id, ttl) => {
            let granted = lease.grant(ttl, Some(LeaseGrantOptions::new().with_id(id))).await;
            granted.map(|answer| format!("granted {} for {}", answer.id(), answer.ttl()))
        }
        Asked::Revoke(id) => lease.revoke(id).await.map(|answer| format!("revoked at {}", answer.header().unwrap().revision())),
        Asked::KeepAlive(id) => match lease.keep_alive(id).await {
            Ok((mut keeper, mut answers)) => {
                keeper.keep_alive().await.unwrap();
                answers
                    .message()
                    .await
                    .map(|answer| answer.map_or_else(String::new, |answer| format!("lives for {}", answer.ttl())))
            }
            Err(error) => Err(error),
        },
        Asked::TimeToLive(id) => {
            let asked = lease.time_to_live(id, Some(LeaseTimeToLiveOptions::new().with_keys())).await;
            asked.map(|answer| {
                let mut keys: Vec<_> = answer.keys().iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect();
                // A real one tells them in any order.
                keys.sort();
                format!("{} of {}, lives: {}, {keys:?}", answer.id(), answer.granted_ttl(), answer.ttl() >= 0)
            })
        }
        Asked::Compact(revision) => kv.compact(revision, None).await.map(|_| "compacted".to_owned()),
    };
    said.unwrap_or_else(|error| match error {
        Error::GRpcStatus(status) => format!("refused {:?}: {}", status.code(), status.message()),
        other => format!("refused {other}"),
    })
}

fn of_txn(answer: &TxnResponse) -> String {
    let results: Vec<_> = answer.op_responses().into_iter().map(of_op).collect();
    format!("{} at {}: {results:?}", answer.succeeded(), answer.header().unwrap().revision())
}

fn of_op(answer: TxnOpResponse) -> String {
    match answer {
        TxnOpResponse::Put(_) => "put".to_owned(),
        TxnOpResponse::Get(answer) => of_range(&answer),
        TxnOpResponse::Delete(answer) => format!("deleted {}", answer.deleted()),
        TxnOpResponse::Txn(answer) => {
            let results: Vec<_> = answer.op_responses().into_iter().map(of_op).collect();
            format!("{}: {results:?}", answer.succeeded())
        }
    }
}

fn of_get(answer: &GetResponse) -> String {
    format!("{} at {}", of_range(answer), answer.header().unwrap().revision())
}

fn of_range(answer: &GetResponse) -> String {
    let kvs: Vec<_> = answer.kvs().iter().map(of_kv).collect();
    format!("{} of {}, more: {}", kvs.join(", "), answer.count(), answer.more())
}

fn of_kv(kv: &KeyValue) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (key, value) = (text(kv.key()), text(kv.value()));
    format!("{key}={value:?} {}/{}/{} under {}", kv.create_revision(), kv.mod_revision(), kv.version(), kv.lease())
}

/// What a watch tells, until this key has changed or the watch is ended. How it comes in messages is up to the server.
async fn told(client: &Client, key: &str, options: WatchOptions, last: &str) -> Vec<String> {
    let mut stream = client.watch_client().watch(key, Some(options)).await.unwrap();
    let mut told = Vec::new();
    while let Some(answer) = stream.message().await.unwrap() {
        told.extend(of_watch(&answer));
        let ends = |event: &etcd_client::Event| event.kv().is_some_and(|kv| kv.key() == last.as_bytes());
        if answer.canceled() || answer.events().iter().any(ends) {
            break;
        }
    }
    told
}

fn of_watch(answer: &WatchResponse) -> Vec<String> {
    let id = answer.watch_id();
    let made = answer.created().then(|| format!("{id} made"));
    let ended = answer.canceled().then(|| format!("{id} ended, {} {:?}", answer.compact_revision(), answer.cancel_reason()));
    let events = answer.events().iter().map(|event| {
        let before = event.prev_kv().map(of_kv);
        format!("{id} {:?} {} before {before:?}", event.event_type(), of_kv(event.kv().unwrap()))
    });
    made.into_iter().chain(ended).chain(events).collect()
}

/// Draws calls that have a fair chance to succeed.
struct Draw(fastrand::Rng);

impl Draw {
    fn key(&mut self) -> &'static str {
        KEYS[self.0.usize(..KEYS.len())]
    }

    fn lease(&mut self) -> i64 {
        self.0.i64(0..4)
    }

    fn revision(&mut self) -> i64 {
        self.0.i64(0..40)
    }

    fn get(&mut self) -> (String, GetOptions) {
        let targets = [SortTarget::Key, SortTarget::Create, SortTarget::Mod, SortTarget::Version, SortTarget::Value];
        let orders = [SortOrder::None, SortOrder::Ascend, SortOrder::Descend];
        let mut options = GetOptions::new().with_sort(targets[self.0.usize(..5)], orders[self.0.usize(..3)]);
        options = match self.0.u32(..4) {
            0 => options.with_prefix(),
            1 => options.with_range("k0"),
            2 => options.with_from_key(),
            _ => options,
        };
        options = options.with_limit(self.0.i64(0..3));
        match self.0.u32(..6) {
            0 => options = options.with_keys_only(),
            1 => options = options.with_count_only(),
            2 => options = options.with_max_create_revision(self.revision().max(1)),
            3 => options = options.with_min_create_revision(self.revision().max(1)),
            _ => {}
        }
        (self.key().to_owned(), options)
    }

    fn compare(&mut self) -> Compare {
        let ops = [CompareOp::Equal, CompareOp::Greater, CompareOp::Less, CompareOp::NotEqual];
        let (key, op, zero) = (self.key(), ops[self.0.usize(..4)], self.0.bool());
        let revision = if zero { 0 } else { self.revision() };
        let compare = match self.0.u32(..8) {
            0 => Compare::version(key, op, self.0.i64(0..3)),
            1 => Compare::mod_revision(key, op, revision),
            2 => Compare::value(key, op, "v"),
            3 => Compare::lease(key, op, self.lease()),
            _ => Compare::create_revision(key, op, revision),
        };
        if self.0.u32(..4) == 0 { compare.with_range("k0") } else { compare }
    }

    fn op(&mut self, depth: u32) -> TxnOp {
        match self.0.u32(..10) {
            0..4 => TxnOp::put(self.key(), ["v", "w"][self.0.usize(..2)], Some(PutOptions::new().with_lease(self.lease()))),
            4..6 => TxnOp::delete(self.key(), None),
            6 if depth == 0 => TxnOp::txn(self.txn(1)),
            _ => {
                let (key, options) = self.get();
                TxnOp::get(key, Some(options))
            }
        }
    }

    fn txn(&mut self, depth: u32) -> Txn {
        let compares: Vec<_> = (0..self.0.usize(..3)).map(|_| self.compare()).collect();
        let mut side = || (0..self.0.usize(..4)).collect::<Vec<_>>().len();
        let (then, otherwise) = (side(), side());
        let then: Vec<_> = (0..then).map(|_| self.op(depth)).collect();
        let otherwise: Vec<_> = (0..otherwise).map(|_| self.op(depth)).collect();
        Txn::new().when(compares).and_then(then).or_else(otherwise)
    }

    fn asked(&mut self) -> Asked {
        match self.0.u32(..24) {
            0 | 1 => Asked::Grant(1 + self.0.i64(0..3), [20, 30, 60][self.0.usize(..3)]),
            2 => Asked::Revoke(self.lease()),
            3 => Asked::KeepAlive(self.lease()),
            4 => Asked::TimeToLive(self.lease()),
            5 => Asked::Put(self.key().to_owned(), self.lease()),
            6 => Asked::Delete(self.key().to_owned(), self.0.bool()),
            7 => Asked::Compact(self.revision()),
            8..12 => {
                let (key, options) = self.get();
                let past = if self.0.u32(..3) == 0 { self.revision() } else { 0 };
                Asked::Get(key, options.with_revision(past))
            }
            _ => Asked::Txn(self.txn(0)),
        }
    }
}

#[tokio::test]
async fn whatever_is_asked_of_both_is_answered_alike() {
    let mut calls = 0;
    let mut refused = Vec::new();
    for seed in 0..3 {
        let mut both = Both::start().await;
        let mut draw = Draw(fastrand::Rng::with_seed(seed));
        for _ in 0..400 {
            both.ask(draw.asked()).await;
            calls += 1;
        }
        both.ask(Asked::Put("last".to_owned(), 0)).await;
        refused.append(&mut both.refused);
        // What is left of it all, and how it came about.
        both.ask(Asked::Get("\0".to_owned(), GetOptions::new().with_from_key())).await;
        let from_the_beginning = both.watch("\0", WatchOptions::new().with_from_key().with_start_revision(1), "last").await;
        assert!(from_the_beginning.iter().any(|told| told.contains("ended")), "there was a compaction: {from_the_beginning:?}");
    }
    refused.sort();
    refused.dedup();
    println!("proof: fake etcd: {calls} calls answered as by a real one, and these refusals: {refused:?}");
    for expected in ["lease not found", "lease already exists", "compacted", "future revision", "duplicate key"] {
        assert!(refused.iter().any(|refusal| refusal.contains(expected)), "nothing was refused for {expected:?}: {refused:?}");
    }
}

#[tokio::test]
async fn a_watch_tells_both_what_it_filters_and_what_was_before() {
    let mut both = Both::start().await;
    both.ask(Asked::Grant(7, 60)).await;
    for asked in [
        Asked::Put("k/a".to_owned(), 7),
        Asked::Put("k/a".to_owned(), 0),
        Asked::Put("k/b".to_owned(), 7),
        Asked::Put("k0".to_owned(), 0),
        Asked::Delete("k/a".to_owned(), false),
        Asked::Revoke(7),
        Asked::Put("k/last".to_owned(), 0),
        Asked::Delete("k/last".to_owned(), false),
    ] {
        both.ask(asked).await;
    }
    let from = |revision| WatchOptions::new().with_prefix().with_start_revision(revision);
    let all = both.watch("k/", from(1), "k/last").await;
    assert_eq!(all.len(), 8, "{all:?}");
    both.watch("k/", from(3).with_prev_key(), "k/last").await;
    both.watch("k/", from(1).with_filters([WatchFilterType::NoPut]), "k/last").await;
    both.watch("k/", from(1).with_filters([WatchFilterType::NoDelete]), "k/last").await;
    both.ask(Asked::Compact(5)).await;
    both.watch("k/", from(4), "k/last").await;
    both.watch("k/", from(5), "k/last").await;
    both.watch("k/", from(6), "k/last").await;
}

#[tokio::test]
async fn what_is_wrong_in_itself_is_refused_alike() {
    let mut both = Both::start().await;
    let many: Vec<_> = (0..129).map(|n| TxnOp::get(format!("k{n}"), None)).collect();
    let twice = [TxnOp::put("k", "v", None), TxnOp::put("k", "w", None)];
    let both_ways = [TxnOp::put("k/a", "v", None), TxnOp::delete("k/", Some(DeleteOptions::new().with_prefix()))];
    for (asked, expected) in [
        (Asked::Get(String::new(), GetOptions::new()), "InvalidArgument"),
        (Asked::Txn(Txn::new().and_then([TxnOp::get("", None)])), "InvalidArgument"),
        (Asked::Txn(Txn::new().and_then(many)), "InvalidArgument"),
        (Asked::Txn(Txn::new().and_then(twice)), "InvalidArgument"),
        (Asked::Txn(Txn::new().or_else(both_ways)), "InvalidArgument"),
        (Asked::Txn(Txn::new().and_then([TxnOp::put("k", "v", Some(PutOptions::new().with_lease(9)))])), "NotFound"),
        (Asked::Grant(9, 9_000_000_001), "OutOfRange"),
        (Asked::KeepAlive(9), "lease not found"),
        (Asked::Revoke(9), "NotFound"),
        (Asked::Compact(99), "OutOfRange"),
    ] {
        let said = both.ask(asked).await;
        assert!(said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn a_silent_lease_takes_its_keys_along_at_both() {
    let mut both = Both::start().await;
    both.ask(Asked::Grant(7, 1)).await;
    both.ask(Asked::Put("k/a".to_owned(), 7)).await;
    both.ask(Asked::Put("k/b".to_owned(), 7)).await;
    // Told at the same revision; when, is up to each: never before the ttl, and at a real one up to a second after it.
    let options = WatchOptions::new().with_prefix().with_filters([WatchFilterType::NoPut]).with_start_revision(1);
    let told = both.watch("k/", options, "k/b").await;
    assert_eq!(told.len(), 3, "{told:?}");
    both.ask(Asked::TimeToLive(7)).await;
    both.ask(Asked::KeepAlive(7)).await;
}
