//! A process that can open nothing more: what it carries goes on, and who comes is told.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use adit::capture::Acceptor;
use adit::flow::relay::spare;
use adit::net::socket::{Listen, listen};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::carriers::{Carried, Carrier, Plain};
use crate::life::sees_reset;
use crate::{SOON, alone, worker};

#[test]
fn a_process_that_may_open_no_pipe_carries_every_byte() {
    let _alone = alone();
    worker().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
        let (upstream, server) = tokio::join!(TcpStream::connect(addr), listener.accept());
        let (mut client, mut server) = (client.unwrap(), server.unwrap().0);
        let carrying = spawn_local(Rc::new(Plain::default()).carry(accepted.unwrap().0, upstream.unwrap()));
        let exhausted = Exhausted::now();
        let said = vec![5; 3 << 20];
        let speak = async {
            client.write_all(&said).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let (_, arrived) = tokio::join!(speak, heard(&mut server));
        drop(exhausted);
        assert!(arrived == said);
        assert_eq!(spare().pipes, 0, "it had a pipe all the same");
        drop(server);
        assert_eq!(heard(&mut client).await, b"");
        let Carried { counted, complete } = carrying.await.unwrap();
        assert_eq!((counted[0], complete[0]), ((said.len(), 0), true));
    });
}

#[test]
fn a_listener_without_descriptors_resets_the_oldest_caller_and_serves_the_rest_later() {
    let _alone = alone();
    worker().block_on(async {
        let addr = "127.0.0.1:0".parse().unwrap();
        let how = Listen { addr, mark: None, reuse_port: false, congestion: None, keepalive: None };
        let listener = listen(&how).unwrap();
        let to = listener.local_addr().unwrap();
        let (_close, closing) = tokio::sync::watch::channel(false);
        let mut acceptor = Acceptor::new(listener, closing).unwrap();
        let oldest = TcpStream::connect(to).await.unwrap();
        let mut next = TcpStream::connect(to).await.unwrap();
        let exhausted = Exhausted::now();
        let first_told = async {
            sees_reset(&oldest, b"", b"").await;
            drop(exhausted);
        };
        let (_, accepted) = tokio::join!(first_told, timeout(SOON, acceptor.next()));
        let mut served = TcpStream::from_std(accepted.unwrap().unwrap().socket.answer()).unwrap();
        served.write_all(b"welcome").await.unwrap();
        drop(served);
        assert_eq!(heard(&mut next).await, b"welcome");
    });
}

async fn heard(from: &mut TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    from.read_to_end(&mut heard).await.unwrap();
    heard
}

/// While it lives, this process can open nothing.
struct Exhausted {
    limits: (u64, u64),
    _filling: Vec<File>,
}

impl Exhausted {
    fn now() -> Self {
        let limits @ (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let numbers = std::fs::read_dir("/proc/self/fd").unwrap();
        let numbers = numbers.filter_map(|fd| fd.unwrap().file_name().to_str()?.parse::<u64>().ok());
        let highest = numbers.max().unwrap();
        // Every number below the limit is taken.
        let filling = std::iter::repeat_with(|| File::open("/dev/null").unwrap())
            .take_while(|file| u64::try_from(file.as_raw_fd()).is_ok_and(|number| number < highest))
            .collect();
        setrlimit(Resource::RLIMIT_NOFILE, highest, hard).unwrap();
        assert!(File::open("/dev/null").is_err(), "there was a descriptor left");
        Self { limits, _filling: filling }
    }
}

impl Drop for Exhausted {
    fn drop(&mut self) {
        setrlimit(Resource::RLIMIT_NOFILE, self.limits.0, self.limits.1).unwrap();
    }
}
