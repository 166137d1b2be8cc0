//! Our machine on one side and the h2 crate on the other, with a wire in memory between them.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::{JoinSet, LocalSet, spawn_local};

use super::*;

/// Larger than all that can be on its way: neither side ever waits for the other to read.
const WIRE: usize = 64 << 20;

/// Bytes that tell by their value where they belong.
fn pattern(stream: usize, length: usize) -> Vec<u8> {
    let byte = |n: usize| (n.wrapping_mul(31) ^ stream.wrapping_mul(131) ^ (n >> 8)).to_le_bytes()[0];
    (0..length).map(byte).collect()
}

/// Sizes of what connections carry: none, little, around frames and windows, much.
fn length(random: &mut fastrand::Rng) -> usize {
    match random.u8(..5) {
        0 => 0,
        1 => random.usize(1..100),
        2 => random.usize(16_300..16_500),
        3 => random.usize(65_000..66_000),
        _ => random.usize(1..900_000),
    }
}

fn config(random: &mut fastrand::Rng) -> Config {
    Config {
        stream_window: random.u32(1_000..2_000_000),
        connection_window: random.u32(65_535..4_000_000),
        frame_size: random.u32(16_384..200_000),
        ..CONFIG
    }
}

/// The caller around a machine: what each stream still has to send, and what it has got.
struct Driver {
    machine: Machine,
    io: DuplexStream,
    random: fastrand::Rng,
    streams: BTreeMap<StreamId, Carried>,
    events: Vec<String>,
}

#[derive(Default)]
struct Carried {
    backlog: VecDeque<u8>,
    /// The backlog is all there will be.
    complete: bool,
    got: Vec<u8>,
    got_end: bool,
    /// What comes is sent back.
    echo: bool,
}

impl Driver {
    fn new(role: Role, config: Config, io: DuplexStream, seed: u64) -> Self {
        let machine = Machine::new(role, config, Instant::now());
        Self {
            machine,
            io,
            random: fastrand::Rng::with_seed(seed),
            streams: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    /// Writes all that may be written now, then reads once; false when the peer has closed.
    async fn turn(&mut self) -> bool {
        let mut wire = self.machine.output().to_vec();
        self.machine.sent(wire.len());
        for (stream, carried) in &mut self.streams {
            loop {
                let room = self.machine.room(*stream).min(carried.backlog.len());
                let length = if room > 1_000 { self.random.usize(1_000..=room) } else { room };
                let last = carried.complete && length == carried.backlog.len();
                if length == 0 && !last {
                    break;
                }
                let Ok(head) = self.machine.send(*stream, length, last) else { break };
                wire.extend(head);
                wire.extend(carried.backlog.drain(..length));
            }
        }
        wire.extend(self.machine.output());
        self.machine.sent(self.machine.output().len());
        if self.io.write_all(&wire).await.is_err() {
            return false;
        }
        let mut buffer = vec![0; self.random.usize(1..300_000)];
        let Ok(read) = self.io.read(&mut buffer).await else { return false };
        let mut bytes = &buffer[..read];
        while let Some(action) = self.machine.read(&mut bytes, Instant::now()).expect("h2 keeps to the rules")
        {
            match action {
                Action::Data { stream, bytes, end } => {
                    let carried = self.streams.entry(stream).or_default();
                    if carried.echo {
                        carried.backlog.extend(bytes);
                        carried.complete = end;
                    }
                    carried.got.extend(bytes);
                    carried.got_end = end;
                    self.machine.left_arena(bytes.len());
                    self.machine.taken(stream, bytes.len());
                }
                other => {
                    if let Action::Request { stream, end, .. } = &other {
                        self.machine.respond(*stream, [(&b"baggage"[..], &b"a=b"[..])]).unwrap();
                        let echo = Carried { echo: true, complete: *end, ..Carried::default() };
                        self.streams.insert(*stream, echo);
                    }
                    self.events.push(line(&other));
                }
            }
        }
        read > 0
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limited = async { tokio::time::timeout(Duration::from_secs(120), test).await };
    LocalSet::new().block_on(&runtime, limited).expect("it comes to an end");
}

/// An h2 application: sends `bytes` as windows allow, then the end; returns what comes.
async fn converse(mut send: h2::SendStream<Bytes>, mut receive: h2::RecvStream, bytes: Vec<u8>) -> Vec<u8> {
    let sending = spawn_local(async move {
        let mut rest = Bytes::from(bytes);
        while !rest.is_empty() {
            send.reserve_capacity(rest.len());
            let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
            send.send_data(rest.split_to(room.min(rest.len())), false).unwrap();
        }
        send.send_data(Bytes::new(), true).unwrap();
    });
    let mut got = Vec::new();
    while let Some(data) = receive.data().await {
        let data = data.unwrap();
        got.extend(&data);
        receive.flow_control().release_capacity(data.len()).unwrap();
    }
    sending.await.unwrap();
    got
}

#[test]
fn an_h2_client_gets_back_from_our_server_what_it_sends() {
    for seed in 0..12 {
        run(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let (ours, theirs) = tokio::io::duplex(WIRE);
            let mut driver = Driver::new(Role::Server, config(&mut random), ours, seed);
            let server = spawn_local(async move {
                while driver.turn().await {}
                assert_eq!(driver.machine.streams(), 0);
                driver.events
            });
            let (client, connection) = h2::client::Builder::new()
                .initial_window_size(random.u32(500..1_000_000))
                .initial_connection_window_size(random.u32(65_535..2_000_000))
                .max_frame_size(random.u32(16_384..100_000))
                .handshake::<_, Bytes>(theirs)
                .await
                .unwrap();
            let connection = spawn_local(connection);
            let mut conversations = JoinSet::new();
            for n in 0..20 {
                let mut client = client.clone().ready().await.unwrap();
                let bytes = pattern(n, length(&mut random));
                let request =
                    Request::connect(format!("10.0.0.{n}:80")).header("baggage", "k=v").body(()).unwrap();
                let (answer, send) = client.send_request(request, false).unwrap();
                conversations.spawn_local(async move {
                    let answer = answer.await.unwrap();
                    assert_eq!(
                        (answer.status(), &answer.headers()["baggage"]),
                        (StatusCode::OK, &HeaderValue::from_static("a=b"))
                    );
                    let got = converse(send, answer.into_body(), bytes.clone()).await;
                    assert!(got == bytes, "stream {n}: {} of {} bytes", got.len(), bytes.len());
                });
            }
            while let Some(done) = conversations.join_next().await {
                done.unwrap();
            }
            drop(client);
            connection.await.unwrap().unwrap();
            let events = server.await.unwrap();
            let requests = events.iter().filter(|line| line.contains(r#"{"baggage": "k=v"}"#)).count();
            assert_eq!(requests, 20, "{events:?}");
        });
    }
}

#[test]
fn our_client_gets_back_from_an_h2_server_what_it_sends() {
    for seed in 0..12 {
        run(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let (ours, theirs) = tokio::io::duplex(WIRE);
            let (window, all) = (random.u32(500..1_000_000), random.u32(65_535..2_000_000));
            let server = spawn_local(async move {
                let mut server = h2::server::Builder::new()
                    .initial_window_size(window)
                    .initial_connection_window_size(all)
                    .max_concurrent_streams(50)
                    .handshake::<_, Bytes>(theirs)
                    .await
                    .unwrap();
                while let Some(request) = server.accept().await {
                    let Ok((request, mut respond)) = request else { return };
                    assert_eq!(request.headers()["forwarded"], "for=\"10.0.0.9:1\"");
                    spawn_local(async move {
                        let mut send = respond.send_response(Response::new(()), false).unwrap();
                        let mut body = request.into_body();
                        while let Some(data) = body.data().await {
                            let mut data = data.unwrap();
                            body.flow_control().release_capacity(data.len()).unwrap();
                            while !data.is_empty() {
                                send.reserve_capacity(data.len());
                                let room =
                                    std::future::poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
                                send.send_data(data.split_to(room.min(data.len())), false).unwrap();
                            }
                        }
                        send.send_data(Bytes::new(), true).unwrap();
                    });
                }
            });
            let mut driver = Driver::new(Role::Client, config(&mut random), ours, seed);
            let mut expected = BTreeMap::new();
            for n in 0..20usize {
                let stream = driver
                    .machine
                    .open("10.0.0.1:80", [(&b"forwarded"[..], &b"for=\"10.0.0.9:1\""[..])])
                    .unwrap();
                let bytes = pattern(n, length(&mut random));
                let carried = Carried {
                    backlog: bytes.iter().copied().collect(),
                    complete: true,
                    ..Carried::default()
                };
                driver.streams.insert(stream, carried);
                expected.insert(stream, bytes);
            }
            while driver.machine.streams() > 0 {
                assert!(driver.turn().await, "the server stays");
            }
            for (stream, bytes) in expected {
                let carried = &driver.streams[&stream];
                assert!(
                    carried.got_end && carried.got == bytes,
                    "stream {stream}: {} bytes",
                    carried.got.len()
                );
            }
            driver.machine.shutdown(Instant::now());
            assert!(driver.machine.is_finished());
            driver.turn().await;
            drop(driver);
            server.await.unwrap();
        });
    }
}

#[test]
fn heads_are_the_same_to_both_in_both_directions() {
    run(async {
        let mut random = fastrand::Rng::with_seed(7);
        let (ours, theirs) = tokio::io::duplex(WIRE);
        let mut driver = Driver::new(Role::Server, CONFIG, ours, 7);
        let server = spawn_local(async move {
            while driver.turn().await {}
            driver.events
        });
        let (mut client, connection) = h2::client::handshake(theirs).await.unwrap();
        let connection = spawn_local(connection);
        let mut expected = vec!["ready".to_owned()];
        let names = ["baggage", "forwarded", "traceparent", "x-forwarded-network", "x-istio-source", "via"];
        for n in 0..50 {
            client = client.ready().await.unwrap();
            let mut request =
                Request::connect(format!("payments-{n}.shop.svc.cluster.local:{n}")).body(()).unwrap();
            let headers: &mut HeaderMap = request.headers_mut();
            let mut fields = Vec::new();
            for name in &names[..random.usize(..names.len())] {
                // Some come again and again, from the table; others are new each time.
                let value = if random.bool() {
                    "k8s.namespace.name=shop".into()
                } else {
                    format!("v-{}", random.u32(..))
                };
                headers.insert(HeaderName::from_static(name), HeaderValue::from_str(&value).unwrap());
                fields.push(format!("{name:?}: {value:?}"));
            }
            let stream = 2 * n + 1;
            let end = format!(
                "{stream}: CONNECT payments-{n}.shop.svc.cluster.local:{n} {{{}}}, end",
                fields.join(", ")
            );
            expected.push(end);
            let (answer, _) = client.send_request(request, true).unwrap();
            assert_eq!(answer.await.unwrap().headers()["baggage"], "a=b");
        }
        drop(client);
        connection.await.unwrap().unwrap();
        expected.push("goaway NO_ERROR ".into());
        let events = server.await.unwrap();
        assert_eq!(events.len(), expected.len());
        for (event, expected) in events.iter().zip(&expected) {
            assert_eq!(event, expected);
        }
    });
}

#[test]
fn a_reset_by_h2_and_the_end_of_its_connection_are_seen_as_they_are() {
    run(async {
        let (ours, theirs) = tokio::io::duplex(WIRE);
        let mut driver = Driver::new(Role::Server, CONFIG, ours, 1);
        let server = spawn_local(async move {
            while driver.turn().await {}
            driver.events
        });
        let (client, connection) = h2::client::handshake(theirs).await.unwrap();
        let connection = spawn_local(connection);
        let mut client = client.ready().await.unwrap();
        let (answer, mut send) =
            client.send_request(Request::connect("10.0.0.1:80").body(()).unwrap(), false).unwrap();
        let answer = answer.await.unwrap();
        send.send_reset(h2::Reason::CANCEL);
        drop((answer, send, client));
        connection.await.unwrap().unwrap();
        let events = server.await.unwrap();
        assert_eq!(events[2..], ["1: ByPeer(CANCEL)", "goaway NO_ERROR "]);
    });
}
