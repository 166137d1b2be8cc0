//! What does the HTTP/2 machine cost, beside the bytes it passes on?
//!
//! - `frame/data/*`: ns per DATA frame of 16,375 bytes, which with its head fills one TLS record, received in chunks of one record.
//!   Windows are given back and announced as a connection whose application takes everything does.
//!   `machine` is ours; `across` is one frame of 64 records, per record; `small` are frames of 64 bytes, 200 to a chunk;
//!   `reference` walks over the same heads and does nothing with them.
//! - `frame/send`: ns per DATA head of a frame of 16,375 bytes, with its WINDOW_UPDATE read.
//! - `frame/connect/*`: µs for one CONNECT with the headers of the mesh, its 200, and the reset that ends it, both sides' work.
//!   `machine` is ours; `reference` is the same by the h2 crate, client and server on one thread with a wire in memory, their tasks
//!   and wakers included. `from-h2` is the server's half alone, ours, for what an h2 client really sends: 1,000 CONNECTs recorded from one,
//!   each with its own `forwarded` and `traceparent`, Huffman-coded and with a dynamic table; µs per connection.
//! - `frame/state`: µs to write down and take up a server with 100 open streams.

use std::hint::black_box;
use std::time::Instant;

use adit::http2::{Action, Config, HEAD, Machine, Role, StreamId};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{LocalSet, spawn_local};

const RECORD: usize = 16_384;
const RECORDS: usize = 64;

const CONFIG: Config = Config {
    stream_window: 4 << 20,
    connection_window: 16 << 20,
    frame_size: 2 << 20,
    header_list: 16 << 10,
    header_table: 4_096,
    streams: 200,
};

const AUTHORITY: &str = "10.77.2.1:8080";
const BAGGAGE: &str = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=storefront,\
                       service.name=storefront,service.version=v1";
const FORWARDED: &str = "for=\"10.77.1.1:41234\";host=payments.shop.svc.cluster.local";
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

fn request_fields() -> [(&'static [u8], &'static [u8]); 3] {
    [
        (b"baggage", BAGGAGE.as_bytes()),
        (b"forwarded", FORWARDED.as_bytes()),
        (b"traceparent", TRACE.as_bytes()),
    ]
}

/// A client and a server whose greeting is done.
struct Pair {
    client: Machine,
    server: Machine,
    now: Instant,
    wire: Vec<u8>,
}

impl Pair {
    fn new() -> Self {
        let now = Instant::now();
        let client = Machine::new(Role::Client, CONFIG, now);
        let server = Machine::new(Role::Server, CONFIG, now);
        let mut pair = Self { client, server, now, wire: Vec::with_capacity(4_096) };
        for _ in 0..2 {
            pair.reach_server();
            pair.reach_client();
        }
        pair
    }

    /// The server reads what the client has to say; answers a request.
    fn reach_server(&mut self) {
        let Self { client, server, now, wire } = self;
        deliver(client, wire);
        let mut bytes = &wire[..];
        while let Some(action) = server.read(&mut bytes, *now).expect("both keep to the rules") {
            if let Action::Request { stream, request, .. } = black_box(action) {
                assert_eq!(request.fields.len(), 3);
                server.respond(stream, [(&b"baggage"[..], BAGGAGE.as_bytes())]).expect("it was just asked");
            }
        }
    }

    fn reach_client(&mut self) {
        let Self { client, server, now, wire } = self;
        deliver(server, wire);
        let mut bytes = &wire[..];
        while let Some(action) = client.read(&mut bytes, *now).expect("both keep to the rules") {
            black_box(action);
        }
    }

    fn connect(&mut self) -> StreamId {
        let stream = self.client.open(AUTHORITY, request_fields()).expect("there is room");
        self.reach_server();
        self.reach_client();
        stream
    }

    fn connect_and_reset(&mut self) {
        let stream = self.connect();
        assert!(self.client.room(stream) > 0);
        self.client.reset(stream, adit::http2::Code::CANCEL);
        self.reach_server();
    }
}

fn deliver(from: &mut Machine, wire: &mut Vec<u8>) {
    wire.clear();
    wire.extend_from_slice(from.output());
    from.sent(wire.len());
}

/// DATA frames of `payload` bytes each on `stream`, `count` of them.
fn frames(stream: StreamId, payload: usize, count: usize) -> Vec<u8> {
    let length = u32::try_from(payload).expect("a frame's length").to_be_bytes();
    let head = [&length[1..], &[0, 0], &stream.number().to_be_bytes()].concat();
    [head, vec![7; payload]].concat().repeat(count)
}

/// Receives `bytes` in chunks of one record, as an application that takes all of it.
fn receive(pair: &mut Pair, stream: StreamId, bytes: &[u8]) {
    for mut chunk in bytes.chunks(RECORD) {
        while let Some(action) = pair.server.read(&mut chunk, pair.now).expect("within the windows") {
            if let Action::Data { bytes, .. } = action {
                black_box(bytes);
                pair.server.left_arena(bytes.len());
                pair.server.taken(stream, bytes.len());
            }
        }
        pair.server.sent(pair.server.output().len());
    }
}

fn walk(bytes: &[u8]) -> usize {
    let mut at = 0;
    let mut count = 0;
    while let Some(head) = bytes.get(at..at + HEAD) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        at = black_box(at + HEAD + length);
        count += 1;
    }
    count
}

fn data(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame/data");
    let mut pair = Pair::new();
    let stream = pair.connect();
    let whole = frames(stream, RECORD - HEAD, RECORDS);
    group.throughput(Throughput::Elements(RECORDS as u64));
    group.bench_function("machine", |bencher| bencher.iter(|| receive(&mut pair, stream, &whole)));
    let across = frames(stream, RECORD * RECORDS - HEAD, 1);
    group.bench_function("across", |bencher| bencher.iter(|| receive(&mut pair, stream, &across)));
    group.bench_function("reference", |bencher| bencher.iter(|| walk(black_box(&whole))));
    let small = frames(stream, 64, 200);
    group.throughput(Throughput::Elements(200));
    group.bench_function("small", |bencher| bencher.iter(|| receive(&mut pair, stream, &small)));
    group.finish();
}

fn send(criterion: &mut Criterion) {
    let mut pair = Pair::new();
    let stream = pair.connect();
    let update = |stream: u32, increment: u32| {
        [&[0, 0, 4, 8, 0][..], &stream.to_be_bytes(), &increment.to_be_bytes()].concat()
    };
    let length = 16_375;
    let updates = [update(0, length), update(stream.number(), length)].concat();
    criterion.bench_function("frame/send", |bencher| {
        bencher.iter(|| {
            let room = pair.client.room(stream);
            assert!(room >= length as usize);
            black_box(pair.client.send(stream, length as usize, false).expect("there is room"));
            let mut bytes = &updates[..];
            while let Some(action) = pair.client.read(&mut bytes, pair.now).expect("both keep to the rules") {
                black_box(action);
            }
        });
    });
}

fn connect(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame/connect");
    let mut pair = Pair::new();
    group.bench_function("machine", |bencher| bencher.iter(|| pair.connect_and_reset()));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
    let tape = LocalSet::new().block_on(&runtime, recorded(1_000));
    group.bench_function("from-h2", |bencher| {
        bencher.iter_custom(|rounds| {
            let (mut elapsed, mut answered) = (std::time::Duration::ZERO, 0);
            while answered < rounds {
                let mut server = Machine::new(Role::Server, CONFIG, Instant::now());
                let started = Instant::now();
                for record in tape.chunks(RECORD) {
                    answered += answer(&mut server, record) as u64;
                    server.sent(server.output().len());
                }
                elapsed += started.elapsed();
            }
            elapsed.mul_f64(rounds as f64 / answered as f64)
        });
    });
    group.bench_function("reference", |bencher| {
        bencher.iter_custom(|rounds| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
            LocalSet::new().block_on(&runtime, by_h2(rounds))
        });
    });
    group.finish();
}

/// All that an h2 client says for `count` connections, one after the other, to a server of ours.
async fn recorded(count: usize) -> Vec<u8> {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let talking = spawn_local(async move {
        let (mut client, connection) = h2::client::handshake(near).await.expect("the server greets");
        spawn_local(connection);
        for n in 0..count {
            client = client.ready().await.expect("the tunnel is up");
            let request = Request::connect(AUTHORITY)
                .header("baggage", BAGGAGE)
                .header("forwarded", FORWARDED.replace("41234", &(10_000 + n).to_string()))
                .header(
                    "traceparent",
                    format!("00-{:032x}-{:016x}-00", u128::MAX / (n as u128 + 3), n * 77_777 + 1),
                )
                .body(())
                .expect("a request");
            let (answer, mut send) = client.send_request(request, false).expect("there is room");
            assert!(answer.await.expect("an answer").status().is_success());
            send.send_reset(h2::Reason::CANCEL);
        }
    });
    let mut server = Machine::new(Role::Server, CONFIG, Instant::now());
    let (mut tape, mut buffer) = (Vec::new(), vec![0; RECORD]);
    loop {
        far.write_all(server.output()).await.expect("the client reads");
        server.sent(server.output().len());
        let read = far.read(&mut buffer).await.expect("a wire in memory");
        tape.extend_from_slice(&buffer[..read]);
        answer(&mut server, &buffer[..read]);
        if read == 0 || talking.is_finished() {
            return tape;
        }
    }
}

/// Reads `bytes` and answers each request in them; how many there were.
fn answer(server: &mut Machine, mut bytes: &[u8]) -> usize {
    let now = Instant::now();
    let mut requests = 0;
    while let Some(action) = server.read(&mut bytes, now).expect("h2 keeps to the rules") {
        if let Action::Request { stream, request, .. } = black_box(action) {
            assert_eq!(request.fields.len(), 3);
            server.respond(stream, [(&b"baggage"[..], BAGGAGE.as_bytes())]).expect("it was just asked");
            requests += 1;
        }
    }
    requests
}

async fn by_h2(rounds: u64) -> std::time::Duration {
    let (near, far) = tokio::io::duplex(1 << 20);
    spawn_local(async move {
        let mut server = h2::server::handshake(far).await.expect("the client greets");
        while let Some(Ok((request, mut respond))) = server.accept().await {
            assert_eq!(request.headers().len(), 3);
            let response = Response::builder().header("baggage", BAGGAGE).body(()).expect("a response");
            let send = respond.send_response(response, false).expect("the client waits");
            spawn_local(async move {
                let (_request, mut send) = (request, send);
                let _ = std::future::poll_fn(|cx| send.poll_reset(cx)).await;
            });
        }
    });
    let (mut client, connection) = h2::client::handshake(near).await.expect("the server greets");
    spawn_local(connection);
    let started = Instant::now();
    for _ in 0..rounds {
        client = client.ready().await.expect("the tunnel is up");
        let request = Request::connect(AUTHORITY)
            .header("baggage", BAGGAGE)
            .header("forwarded", FORWARDED)
            .header("traceparent", TRACE)
            .body(())
            .expect("a request");
        let (answer, mut send) = client.send_request(request, false).expect("there is room");
        assert!(answer.await.expect("an answer").status().is_success());
        send.send_reset(h2::Reason::CANCEL);
    }
    started.elapsed()
}

fn state(criterion: &mut Criterion) {
    let mut pair = Pair::new();
    for _ in 0..100 {
        pair.connect();
    }
    let now = pair.now;
    let mut server = Some(pair.server);
    criterion.bench_function("frame/state", |bencher| {
        bencher.iter(|| {
            let state = server.take().expect("put back each time").into_state(now).expect("all is read");
            server = Some(Machine::from_state(&state, now).expect("it was just written"));
        });
    });
}

criterion_group!(benches, data, send, connect, state);
criterion_main!(benches);
