//! The fake Consul against a real one: the same requests to both bring the same answers, and move the same indexes in the same order.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use dlock_consul::{Answer, Lane, Method, Request};
use dlock_sim::wire::consul::{FakeConsul, Rules, Store};
use dlock_testkit::servers::{ConsulAgent, http};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

/// A session that neither knows.
const STRANGER: &str = "00000000-0000-0000-0000-000000000000";
const KEYS: [&str; 3] = ["a", "a/b", "ключ c?d"];

/// A real agent and a fake one, and which ids and indexes of theirs stand for each other.
struct Both {
    agent: ConsulAgent,
    fake: FakeConsul,
    /// Of the real one, of the fake one.
    sessions: Vec<(String, String)>,
    /// Fake by real, and back.
    indexes: BTreeMap<u64, u64>,
    back: BTreeMap<u64, u64>,
    /// How often each status was answered.
    statuses: BTreeMap<u16, u32>,
    prefix: String,
    said: String,
}

/// One of the two.
#[derive(Clone, Copy)]
enum Side {
    Real,
    Fake,
}

/// A request that means the same to both.
#[derive(Clone)]
struct Asked {
    method: Method,
    /// With `{n}` for the id of the n-th session.
    target: String,
    /// Likewise, and `"#n"` for the index that is n at the fake one.
    body: String,
}

impl Both {
    async fn start() -> Self {
        let agent = ConsulAgent::start().await.unwrap();
        let fake = FakeConsul::new(Store::new(Rules::default()), 7);
        let mut both = Self {
            agent,
            fake,
            sessions: Vec::new(),
            indexes: BTreeMap::new(),
            back: BTreeMap::new(),
            statuses: BTreeMap::new(),
            prefix: String::new(),
            said: String::new(),
        };
        // The real one has seen a session come and go when it came up.
        both.ask(create("86400s", "0s", "release")).await;
        both.ask(put("/v1/session/destroy/{0}", "")).await;
        both
    }

    /// What comes next shares no key and no session with what was before.
    fn turn_page(&mut self, page: u64) {
        self.sessions.clear();
        self.prefix = format!("page-{page}/");
        self.said.clear();
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn key_target(&self, key: &str) -> String {
        let encoded =
            self.key(key).split('/').map(|part| utf8_percent_encode(part, NON_ALPHANUMERIC).to_string()).collect::<Vec<_>>();
        format!("/v1/kv/{}", encoded.join("/"))
    }

    /// Sends the same to both, and compares what comes back.
    async fn ask(&mut self, asked: Asked) -> Value {
        let (method, name) = match asked.method {
            Method::Get => (Method::Get, "GET"),
            Method::Put => (Method::Put, "PUT"),
            other => panic!("{other:?} is asked of neither"),
        };
        _ = writeln!(self.said, "{name} {} {}", asked.target, asked.body);
        let (target, body) = (self.spell(&asked.target, Side::Real), self.spell(&asked.body, Side::Real));
        let reply = http(self.agent.address(), name, &target, &[], &body).await.unwrap();
        let index = reply.head.lines().find_map(|line| line.strip_prefix("X-Consul-Index: ")).map(|index| index.parse().unwrap());
        let real = Answer { status: reply.status, index, body: reply.body };
        let (target, body) = (self.spell(&asked.target, Side::Fake), self.spell(&asked.body, Side::Fake).into_bytes());
        let request = Request::new(method, target, Lane::Short, Duration::from_secs(1)).with_body(body);
        let fake = self.fake.answer(Duration::ZERO, &request);
        self.compare(&real, &fake)
    }

    fn spell(&self, text: &str, side: Side) -> String {
        let mut text = text.to_owned();
        for (n, (real, fake)) in self.sessions.iter().enumerate() {
            let id = if matches!(side, Side::Real) { real } else { fake };
            text = text.replace(&format!("{{{n}}}"), id);
        }
        while let Some((before, rest)) = text.split_once("\"#") {
            let (index, after) = rest.split_once('"').unwrap();
            let fake = index.parse().unwrap();
            let index = if matches!(side, Side::Real) { self.back[&fake] } else { fake };
            text = format!("{before}{index}{after}");
        }
        text
    }

    fn compare(&mut self, real: &Answer, fake: &Answer) -> Value {
        let told = format!("real {real:?}\nfake {fake:?}\nafter:\n{}", self.said);
        assert_eq!(real.status, fake.status, "{told}");
        *self.statuses.entry(real.status).or_default() += 1;
        assert_eq!(real.index.is_some(), fake.index.is_some(), "{told}");
        if let (Some(real), Some(fake)) = (real.index, fake.index) {
            self.same_index(real, fake, &told);
        }
        match (serde_json::from_str(&real.body), serde_json::from_str(&fake.body)) {
            (Ok(real), Ok(fake)) => {
                self.same(&real, &fake, &told);
                fake
            }
            (Err(_), Err(_)) => {
                assert_eq!(self.neutral(real.body.trim(), Side::Real), self.neutral(fake.body.trim(), Side::Fake), "{told}");
                Value::Null
            }
            _ => panic!("one is JSON, the other is not\n{told}"),
        }
    }

    fn same(&mut self, real: &Value, fake: &Value, told: &str) {
        match (real, fake) {
            (Value::Object(real), Value::Object(fake)) => {
                assert_eq!(real.keys().collect::<Vec<_>>(), fake.keys().collect::<Vec<_>>(), "{told}");
                for (name, real) in real {
                    let fake = &fake[name];
                    match name.as_str() {
                        "CreateIndex" | "ModifyIndex" => self.same_index(real.as_u64().unwrap(), fake.as_u64().unwrap(), told),
                        // The name of the machine.
                        "Node" => {}
                        "ID" => self.same_session(real.as_str().unwrap(), fake.as_str().unwrap(), told),
                        _ => self.same(real, fake, told),
                    }
                }
            }
            (Value::Array(real), Value::Array(fake)) => {
                assert_eq!(real.len(), fake.len(), "{told}");
                for (real, fake) in real.iter().zip(fake) {
                    self.same(real, fake, told);
                }
            }
            (Value::String(real), Value::String(fake)) => {
                if let (Some(real), Some(fake)) = (named_index(real), named_index(fake)) {
                    self.same_index(real, fake, told);
                }
                assert_eq!(self.neutral(real, Side::Real), self.neutral(fake, Side::Fake), "{told}");
            }
            (real, fake) => assert_eq!(real, fake, "{told}"),
        }
    }

    fn same_session(&mut self, real: &str, fake: &str, told: &str) {
        match self.sessions.iter().find(|(known, _)| known == real) {
            Some((_, known)) => assert_eq!(known, fake, "{told}"),
            None => self.sessions.push((real.to_owned(), fake.to_owned())),
        }
    }

    /// Two indexes stand for each other from now on; the order of all must agree.
    fn same_index(&mut self, real: u64, fake: u64, told: &str) {
        let known = *self.indexes.entry(real).or_insert(fake);
        self.back.insert(fake, real);
        assert_eq!(known, fake, "the real index {real}: {told}");
        let below = self.indexes.range(..real).next_back().map_or(0, |(_, fake)| *fake);
        let above = self.indexes.range(real + 1..).next().map_or(u64::MAX, |(_, fake)| *fake);
        assert!(below < fake && fake < above, "the fake index {fake} is not between {below} and {above}: {told}");
    }

    /// A text without what differs between the two by right.
    fn neutral(&self, text: &str, side: Side) -> String {
        let mut text = text.split(", current modify index").next().unwrap_or_default().to_owned();
        for (n, (real, fake)) in self.sessions.iter().enumerate() {
            let id = if matches!(side, Side::Real) { real } else { fake };
            text = text.replace(id.as_str(), &format!("{{{n}}}"));
        }
        text
    }
}

/// The index in `current modify index 32 != 3`.
fn named_index(text: &str) -> Option<u64> {
    text.split_once("current modify index ")?.1.split_once(' ')?.0.parse().ok()
}

fn get(target: impl Into<String>) -> Asked {
    Asked { method: Method::Get, target: target.into(), body: String::new() }
}

fn put(target: impl Into<String>, body: impl Into<String>) -> Asked {
    Asked { method: Method::Put, target: target.into(), body: body.into() }
}

fn create(ttl: &str, delay: &str, behavior: &str) -> Asked {
    let body = json!({"Name": "n", "TTL": ttl, "LockDelay": delay, "Behavior": behavior, "NodeChecks": []});
    put("/v1/session/create", body.to_string())
}

/// Draws requests that have a fair chance to succeed.
struct Draw<'a> {
    rng: fastrand::Rng,
    both: &'a Both,
}

impl Draw<'_> {
    fn key(&mut self) -> &'static str {
        KEYS[self.rng.usize(..KEYS.len())]
    }

    fn session(&mut self) -> String {
        match self.rng.u32(..20) {
            0 => STRANGER.to_owned(),
            1 => "bad".to_owned(),
            2 => String::new(),
            _ => format!("{{{}}}", self.rng.usize(..self.both.sessions.len())),
        }
    }

    /// The index at which a key stands, mostly.
    fn index(&mut self, key: &str) -> Value {
        let stands = self.both.fake.store.entry(&self.both.key(key)).map(|entry| entry.modified);
        let known = stands.filter(|index| self.both.back.contains_key(index));
        match (self.rng.u32(..6), known) {
            (0, _) | (_, None) => json!(0),
            (1, Some(stands)) => {
                self.both.back.range(..stands).next_back().map_or(json!(0), |(index, _)| json!(format!("#{index}")))
            }
            (_, Some(stands)) => json!(format!("#{stands}")),
        }
    }

    fn op(&mut self, key: &str, verb: &str) -> Value {
        let value = ["", "aGk=", "eHl6"][self.rng.usize(..3)];
        let mut kv = json!({"Verb": verb, "Key": self.both.key(key)});
        match verb {
            "set" => kv["Value"] = json!(value),
            "check-index" | "delete-cas" => kv["Index"] = self.index(key),
            "cas" => (kv["Index"], kv["Value"]) = (self.index(key), json!(value)),
            "check-session" => kv["Session"] = json!(self.session()),
            "lock" | "unlock" => (kv["Session"], kv["Value"]) = (json!(self.session()), json!(value)),
            _ => {}
        }
        if matches!(verb, "set" | "cas" | "lock" | "unlock") && self.rng.bool() {
            kv["Flags"] = json!(3_304_740_253_564_472_344_u64);
        }
        json!({"KV": kv})
    }

    fn txn(&mut self) -> Asked {
        const SHAPES: [&[&str]; 17] = [
            &["check-not-exists", "lock"],
            &["check-index", "lock"],
            &["check-index", "lock", "unlock"],
            &["check-index", "unlock"],
            &["lock"],
            &["lock", "check-session"],
            &["unlock"],
            &["unlock", "delete"],
            &["check-session", "cas"],
            &["check-session", "set", "get"],
            &["get"],
            &["delete-cas"],
            &["check-not-exists", "lock", "get", "get-tree"],
            &["get", "get-tree"],
            &["get-tree"],
            &["check-session", "delete", "lock"],
            &["lock", "check-session", "check-not-exists"],
        ];
        const ANY: [&str; 12] = [
            "set",
            "cas",
            "lock",
            "unlock",
            "get",
            "get-tree",
            "check-index",
            "check-not-exists",
            "check-session",
            "delete",
            "delete-cas",
            "frobnicate",
        ];
        let ops: Vec<Value> = if self.rng.u32(..3) > 0 {
            let key = self.key();
            SHAPES[self.rng.usize(..SHAPES.len())].iter().map(|verb| self.op(key, verb)).collect()
        } else {
            (0..self.rng.usize(..6))
                .map(|_| {
                    let (key, verb) = (self.key(), ANY[self.rng.usize(..ANY.len())]);
                    self.op(key, verb)
                })
                .collect()
        };
        put(["/v1/txn", "/v1/txn?consistent"][self.rng.usize(..2)], Value::from(ops).to_string())
    }

    fn request(&mut self) -> Asked {
        let key = self.key();
        let target = self.both.key_target(key);
        let session = self.session();
        match self.rng.u32(..24) {
            0 | 1 => create("86400s", ["0s", "60s"][self.rng.usize(..2)], ["release", "delete"][self.rng.usize(..2)]),
            2 => put(format!("/v1/session/renew/{session}"), ""),
            3 => put(format!("/v1/session/destroy/{session}"), ""),
            4 => get(format!("/v1/session/info/{session}")),
            5 => get(format!("{target}?{}&consistent", ["recurse", "keys"][self.rng.usize(..2)])),
            6 => put(format!("{target}?flags=7"), "plain"),
            7 => put(format!("{target}?acquire={session}"), "acquire"),
            8 => put(format!("{target}?release={session}&flags=9"), "release"),
            9 => put(format!("{target}?cas=0"), "cas"),
            _ => self.txn(),
        }
    }
}

#[tokio::test]
async fn the_fake_says_what_a_real_consul_says() {
    let mut both = Both::start().await;
    let (pages, requests): (u64, usize) = (300, 20);
    for page in 0..pages {
        both.turn_page(page);
        for (delay, behavior) in [("0s", "release"), ("60s", "delete")] {
            both.ask(create("86400s", delay, behavior)).await;
        }
        let mut rng = fastrand::Rng::with_seed(page);
        for _ in 0..requests {
            let asked = Draw { rng: rng.fork(), both: &both }.request();
            both.ask(asked).await;
            for key in KEYS {
                let target = both.key_target(key);
                both.ask(get(format!("{target}?consistent"))).await;
            }
        }
    }
    let (statuses, indexes) = (&both.statuses, both.indexes.len());
    println!("{pages} sequences of {requests} requests; answers by status {statuses:?}; {indexes} indexes in the same order");
    // Success and refusal of every sort came about, or nothing was compared.
    for status in [200, 404, 409, 500] {
        assert!(both.statuses[&status] > 100, "{:?}", both.statuses);
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_in_the_same_words() {
    let mut both = Both::start().await;
    let id = "{1}";
    both.ask(create("86400s", "0s", "release")).await;
    for (ttl, delay, behavior) in
        [("5ms", "0s", "release"), ("90000s", "0s", "release"), ("xx", "0s", "release"), ("15s", "0s", "keep")]
    {
        both.ask(create(ttl, delay, behavior)).await;
    }
    let many: Vec<Value> = (0..65).map(|_| json!({"KV": {"Verb": "get", "Key": "k"}})).collect();
    for asked in [
        put("/v1/session/renew/", ""),
        put("/v1/session/renew/bad", ""),
        put(format!("/v1/session/renew/{STRANGER}"), ""),
        put("/v1/session/destroy/bad", ""),
        put(format!("/v1/session/destroy/{STRANGER}"), ""),
        get(format!("/v1/session/info/{STRANGER}")),
        get("/v1/session/info/bad"),
        get("/v1/kv/"),
        put("/v1/txn", Value::from(many).to_string()),
        put("/v1/txn", json!([{"KV": {"Verb": "lock", "Key": "", "Session": id}}]).to_string()),
        put("/v1/txn", "[]"),
    ] {
        both.ask(asked).await;
    }
}
