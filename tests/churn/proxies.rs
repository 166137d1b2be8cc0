//! The two proxies whose tunnels are tried here, as far as a tunnel needs them: certificates, and handshakes over the loopback of a
//! namespace.

use std::sync::Arc;
use std::time::Duration;

use adit::capture::{self, Pod};
use adit::hbone::{Carrier, Config, DialPlan, Handshakes, Secured};
use adit::identity::{Authority, Clock, Credentials, EmbeddedCa, SpiffeId, Tls, TlsPolicy};
use adit::net::Netns;
use adit::net::socket::Transparent;
use rustls::{ClientConfig, ServerConfig};
use tokio::net::TcpListener;

/// Makes the handshakes of tunnels, in the namespace of the calling thread.
pub struct Proxies {
    handshakes: Handshakes,
    pod: Arc<Pod>,
    /// Held while one is made, so that what is accepted is what was dialled.
    listener: tokio::sync::Mutex<TcpListener>,
    near: Arc<ClientConfig>,
    far: Arc<ServerConfig>,
}

/// Windows small enough that they shut, and grow.
pub fn config(carrier: Carrier) -> Config {
    Config {
        carrier,
        stream_window: 1 << 20,
        connection_window: 4 << 20,
        frame_size: 1 << 20,
        streams_per_tunnel: 100,
        idle_release: Duration::from_secs(300),
    }
}

impl Proxies {
    pub async fn new(handshakes: Handshakes) -> Self {
        let netns = Arc::new(Netns::current().unwrap());
        let sockets = capture::Config {
            mark: None,
            reuse_port: false,
            transparent: Transparent::Off,
            ipv6: false,
            keepalive: None,
        };
        let (pod, _) = Pod::listen("uid-1", ("shop", "web-1", "web"), netns, sockets).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ca = EmbeddedCa::open(dir.path(), "cluster.local", Clock::system()).unwrap();
        let policy = TlsPolicy::new(Tls::default(), Clock::system());
        let issue = async |account| {
            let issued = ca.issue(id(account), Duration::from_secs(86_400)).await.unwrap();
            Credentials::new(&id(account), issued, &policy).unwrap()
        };
        let (web, cart) = (issue("web").await, issue("cart").await);
        Self {
            handshakes,
            pod: Arc::new(pod),
            listener: tokio::sync::Mutex::new(TcpListener::bind("127.0.0.1:0").await.unwrap()),
            near: web.client_config([id("cart")].into()),
            far: cart.server_config(),
        }
    }

    /// Both ends of a new tunnel, before HTTP/2: the client's and the server's.
    pub async fn handshake(&self, carrier: Carrier) -> (Secured, Secured) {
        let listener = self.listener.lock().await;
        let plan = DialPlan {
            to: listener.local_addr().unwrap(),
            pod: self.pod.clone(),
            config: self.near.clone(),
            carrier,
        };
        let accept = async {
            let (socket, _) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap();
            self.handshakes.accept(socket.into_std().unwrap(), self.far.clone(), carrier).await
        };
        let (near, far) = tokio::join!(self.handshakes.connect(plan), accept);
        (near.unwrap(), far.unwrap())
    }
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", account).unwrap()
}
