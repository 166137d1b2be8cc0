//! Handshakes with rustls at the other end.

use std::time::Duration;

use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::crypto::aws_lc_rs::kx_group::{SECP384R1, X25519};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{AlertDescription, CipherSuite, Error, HandshakeKind};

use super::support::*;
use crate::identity::{
    Authority, Clock, Credentials, EmbeddedCa, SpiffeId, Tls, TlsPolicy, VerifiedPeer, require_h2,
};
use crate::tls::*;

const BOTH: [Role; 2] = [Role::Client, Role::Server];

fn id(name: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", name).unwrap()
}

#[test]
fn each_role_and_suite_is_established_whatever_the_pieces() {
    for role in BOTH {
        for suite in Suite::ALL {
            for piece in [1, 3, 100, 2000, usize::MAX] {
                let (mut ours, mut peer) = ends(role, suite);
                shake(&mut ours, &mut peer, piece).unwrap();
                let done = ours.finish().unwrap();
                assert_eq!(done.suite, suite);
                assert_eq!(done.alpn.as_deref(), Some(&b"h2"[..]));
                let leaf = if role == Role::Client { &PKI.cart } else { &PKI.web };
                assert_eq!(done.peer_certificates, std::slice::from_ref(&leaf.der));
                assert!(!peer.0.is_handshaking());
            }
        }
    }
}

#[test]
fn the_configurations_of_credentials_work_and_the_peer_is_verified_before_the_keys_are_taken() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ca = EmbeddedCa::open(dir.path(), "cluster.local", Clock::system()).unwrap();
    let policy = TlsPolicy::new(Tls::default(), Clock::system());
    let credentials = |name| {
        let issued = runtime.block_on(ca.issue(id(name), Duration::from_secs(3600))).unwrap();
        Credentials::new(&id(name), issued, &policy).unwrap()
    };
    let (web, cart) = (credentials("web"), credentials("cart"));
    let mut client =
        Handshake::client(&web.client_config([id("cart")].into()), super::support::cart()).unwrap();
    let mut server = Handshake::server(&cart.server_config()).unwrap();
    assert!(VerifiedPeer::of(client.connection()).is_err(), "not yet");
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    client.start(&mut to_server).unwrap();
    while !(client.is_done() && server.is_done()) {
        server.receive(&std::mem::take(&mut to_server), &mut to_client).unwrap();
        client.receive(&std::mem::take(&mut to_client), &mut to_server).unwrap();
    }
    assert_eq!(VerifiedPeer::of(client.connection()).unwrap().identity(), &id("cart"));
    assert_eq!(VerifiedPeer::of(server.connection()).unwrap().identity(), &id("web"));
    require_h2(client.connection()).unwrap();
    let (mut client, server) = (client.finish().unwrap(), server.finish().unwrap());
    assert_eq!(client.suite, Suite::Aes256, "the suite that is preferred");
    let mut news = News::default();
    Inbox::new(server.opener, server.received)
        .receive(&seal(&mut client.sealer, b"hello", 1), &mut news)
        .unwrap();
    assert_eq!(news.data, b"hello");
}

#[test]
fn data_that_comes_with_the_last_flight_is_carried_over_as_it_came() {
    for suite in Suite::ALL {
        for piece in [1, 7, usize::MAX] {
            // A rustls client sends data together with its Finished.
            let (mut ours, mut peer) = ends(Role::Server, suite);
            peer.write(b"early bird");
            shake(&mut ours, &mut peer, piece).unwrap();
            peer.write(&pattern(40_000));
            let mut more = peer.sends();
            let cut = more.split_off(20_000);
            ours.receive(&more, &mut Vec::new()).unwrap();
            let done = ours.finish().unwrap();
            assert_eq!(done.opener.sequence(), 0, "rustls opened none of it");
            let mut inbox = Inbox::new(done.opener, done.received);
            let mut news = News::default();
            inbox.receive(&[], &mut news).unwrap();
            assert!(news.data.starts_with(b"early bird"));
            inbox.receive(&cut, &mut news).unwrap();
            assert_eq!(news.data[10..], pattern(40_000));
        }
    }
}

#[test]
fn every_handshake_proves_both_ends_anew_whatever_the_configuration_keeps() {
    // rustls's defaults: a server that sends tickets and keeps sessions, a client that comes back with what it has.
    let (server, client) = (server_config(Suite::Aes128), client_config(Suite::Aes128));
    for turn in 0..3 {
        let mut ours = Handshake::server(&server).unwrap();
        let mut peer = Peer::client(client.clone());
        shake(&mut ours, &mut peer, usize::MAX).unwrap();
        assert_eq!(ours.connection().handshake_kind(), Some(HandshakeKind::Full), "server, turn {turn}");
        assert_eq!(ours.finish().unwrap().sealer.sequence(), 0, "no ticket was sent");
        let mut ours = Handshake::client(&client, cart()).unwrap();
        let mut peer = Peer::server(server.clone());
        shake(&mut ours, &mut peer, usize::MAX).unwrap();
        assert_eq!(ours.connection().handshake_kind(), Some(HandshakeKind::Full), "client, turn {turn}");
    }
}

#[test]
fn a_handshake_that_must_be_tried_again_ends_like_any_other() {
    let only = |groups: &[&'static dyn SupportedKxGroup]| CryptoProvider {
        kx_groups: groups.to_vec(),
        ..(*provider(&[rustls_suite(Suite::Aes256)])).clone()
    };
    let (of_server, of_client) = (only(&[SECP384R1]), only(&[X25519, SECP384R1]));
    for (role, piece) in [(Role::Client, 1), (Role::Client, 4_000), (Role::Server, 5), (Role::Server, 4_000)]
    {
        let (server, client) = (of_server.clone().into(), of_client.clone().into());
        let (mut ours, mut peer) = match role {
            Role::Client => (
                Handshake::client(&client_config_of(client), cart()).unwrap(),
                Peer::server(server_config_of(server)),
            ),
            Role::Server => (
                Handshake::server(&server_config_of(server)).unwrap(),
                Peer::client(client_config_of(client)),
            ),
        };
        shake(&mut ours, &mut peer, piece).unwrap();
        assert_eq!(ours.connection().handshake_kind(), Some(HandshakeKind::FullWithHelloRetryRequest));
        let mut done = ours.finish().unwrap();
        peer.receive(&seal(&mut done.sealer, b"hello", 1)).unwrap();
        assert_eq!(peer.read(), b"hello");
        peer.write(b"back");
        let mut news = News::default();
        Inbox::new(done.opener, done.received).receive(&peer.sends(), &mut news).unwrap();
        assert_eq!(news.data, b"back");
    }
}

#[test]
fn a_configuration_with_another_suite_is_refused_before_anything_is_sent() {
    let with_chacha =
        provider(&[cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_CHACHA20_POLY1305_SHA256]);
    let refused = Handshake::client(&client_config_of(with_chacha), cart()).unwrap_err();
    assert!(matches!(refused, HandshakeError::Offers { suite: CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 }));
    assert!(refused.to_string().contains("classic carrier"), "{refused}");
    let policy = TlsPolicy::new(Tls { tls12: true, ..Tls::default() }, Clock::system());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ca = EmbeddedCa::open(dir.path(), "cluster.local", Clock::system()).unwrap();
    let issued = runtime.block_on(ca.issue(id("cart"), Duration::from_secs(3600))).unwrap();
    let with_tls12 = Credentials::new(&id("cart"), issued, &policy).unwrap();
    assert!(matches!(Handshake::server(&with_tls12.server_config()), Err(HandshakeError::Offers { .. })));
}

#[test]
fn a_failed_handshake_ends_with_the_alert_and_stays_failed() {
    // No suite in common: the server says handshake_failure, in the clear.
    let mut ours = Handshake::server(&server_config(Suite::Aes128)).unwrap();
    let mut peer = Peer::client(client_config(Suite::Aes256));
    let mut send = Vec::new();
    let failed = ours.receive(&peer.sends(), &mut send).unwrap_err();
    assert!(matches!(failed, HandshakeError::Tls(Error::PeerIncompatible(_))), "{failed:?}");
    let told = peer.receive(&send).unwrap_err();
    assert_eq!(told, Error::AlertReceived(AlertDescription::HandshakeFailure));
    assert!(matches!(ours.receive(&[], &mut send), Err(HandshakeError::Over)));
    assert!(matches!(ours.finish(), Err(HandshakeError::Unfinished)));
}

#[test]
fn a_client_refuses_a_server_of_another_name_with_an_alert_that_it_understands() {
    let mut ours =
        Handshake::client(&client_config(Suite::Aes128), "other.test".try_into().unwrap()).unwrap();
    let mut peer = Peer::server(server_config(Suite::Aes128));
    let mut send = Vec::new();
    ours.start(&mut send).unwrap();
    peer.receive(&std::mem::take(&mut send)).unwrap();
    let failed = ours.receive(&peer.sends(), &mut send).unwrap_err();
    assert!(matches!(failed, HandshakeError::Tls(Error::InvalidCertificate(_))), "{failed:?}");
    let told = peer.receive(&send).unwrap_err();
    assert_eq!(told, Error::AlertReceived(AlertDescription::BadCertificate));
}

#[test]
fn what_is_no_tls_is_refused_at_its_first_record() {
    let too_long = [22, 3, 1, 0xff, 0xff];
    for (bytes, alert) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], AlertDescription::DecodeError),
        (&too_long[..], AlertDescription::DecodeError),
        (&[22, 3, 3, 0, 0][..], AlertDescription::DecodeError),
    ] {
        let mut ours = Handshake::server(&server_config(Suite::Aes128)).unwrap();
        let mut send = Vec::new();
        assert!(matches!(ours.receive(bytes, &mut send), Err(HandshakeError::Tls(_))), "{bytes:?}");
        assert_eq!(send, [21, 3, 3, 0, 2, 2, alert.into()], "{bytes:?}");
    }
}

#[test]
fn a_handshake_is_bounded() {
    // A message that rustls would wait for, in records of one byte.
    let mut ours = Handshake::server(&server_config(Suite::Aes128)).unwrap();
    let message = [1, 0, 0xff, 0xfe].into_iter().chain(std::iter::repeat(0));
    for (sent, byte) in message.enumerate() {
        if let Err(failed) = ours.receive(&[22, 3, 1, 0, 1, byte], &mut Vec::new()) {
            assert!(matches!(failed, HandshakeError::Long { limit: 131_072 }), "{failed:?}");
            assert_eq!(sent, 131_072 / 6);
            return;
        }
    }
}

#[test]
fn a_finished_handshake_and_its_ends_go_to_other_threads() {
    fn goes<T: Send>() {}
    goes::<Handshake>();
    goes::<Established>();
    goes::<SealerState>();
    goes::<OpenerState>();
}

#[test]
fn an_end_in_the_middle_says_how_far_it_came() {
    let (mut ours, mut peer) = ends(Role::Client, Suite::Aes128);
    let mut send = Vec::new();
    ours.start(&mut send).unwrap();
    peer.receive(&send).unwrap();
    let answer = peer.sends();
    ours.receive(&answer[..100], &mut send).unwrap();
    assert!(!ours.is_done());
    let error = ours.eof();
    assert_eq!(error.to_string(), "the connection ended in the handshake, 100 bytes into the peer's part");
}

#[test]
fn a_server_that_refuses_our_certificate_is_heard_by_the_opener() {
    let mut config = client_config(Suite::Aes256);
    let nobody = rustls::client::ClientConfig::builder_with_provider(config.crypto_provider().clone());
    config.client_auth_cert_resolver = nobody
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
        .client_auth_cert_resolver;
    let mut ours = Handshake::client(&config, cart()).unwrap();
    let mut peer = Peer::server(server_config(Suite::Aes256));
    let mut send = Vec::new();
    ours.start(&mut send).unwrap();
    peer.receive(&std::mem::take(&mut send)).unwrap();
    ours.receive(&peer.sends(), &mut send).unwrap();
    assert!(ours.is_done());
    assert!(peer.receive(&send).is_err());
    let done = ours.finish().unwrap();
    let error =
        Inbox::new(done.opener, done.received).receive(&peer.sends(), &mut News::default()).unwrap_err();
    assert!(
        matches!(error, OpenError::Alert { alert: AlertDescription::CertificateRequired, .. }),
        "{error}"
    );
    assert_eq!(error.alert(), None);
}
