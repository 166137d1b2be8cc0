//! Real handshakes in memory: whom each side accepts, whom it refuses and with which words.

use rcgen::CustomExtension;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::ServerName;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, CertificateError, CipherSuite, ClientConfig, ClientConnection, Error, HandshakeKind,
    NamedGroup, ProtocolVersion, RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion,
};

use crate::identity::{PeerError, SanError, SpiffeError, VerifiedPeer, require_h2};

use super::*;

/// Both ends after a handshake, or the first error and whose it was.
#[derive(Debug)]
enum Broke {
    Client(Error),
    Server(Error),
}

fn shake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), Broke> {
    // A DNS name, which rustls would send as SNI if it were allowed to.
    let name = ServerName::try_from("cart.example").unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    // Three rounds finish a handshake with a retried key share; the last one carries what follows it.
    for _ in 0..4 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        feed(&mut wire.as_slice(), |wire| {
            server.read_tls(wire).unwrap();
            server.process_new_packets().map(drop)
        })
        .map_err(Broke::Server)?;
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        feed(&mut wire.as_slice(), |wire| {
            client.read_tls(wire).unwrap();
            client.process_new_packets().map(drop)
        })
        .map_err(Broke::Client)?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking(), "the handshake is stuck");
    Ok((client, server))
}

fn feed(wire: &mut &[u8], mut take: impl FnMut(&mut &[u8]) -> Result<(), Error>) -> Result<(), Error> {
    while !wire.is_empty() {
        take(wire)?;
    }
    Ok(())
}

fn peer_error(error: &Error) -> &PeerError {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref().unwrap(),
        other => panic!("no identity error: {other}"),
    }
}

/// What a client that dials `cart` says to a server that shows `issued`.
fn client_meets(mint: &Mint, issued: Issued) -> Error {
    let client = mint.credentials(&id("till")).client_config(only(id("cart")));
    match shake(client, serving(issued)).unwrap_err() {
        Broke::Client(error) => error,
        Broke::Server(error) => panic!("the server gave up first: {error}"),
    }
}

/// What `cart` says to a client that shows `issued`.
fn server_meets(mint: &Mint, issued: Issued) -> Error {
    let roots = mint.certificate.clone();
    let client = dialling(&roots, Some(issued), default_provider(), &[&TLS13]);
    match shake(client, mint.credentials(&id("cart")).server_config()).unwrap_err() {
        Broke::Server(error) => error,
        Broke::Client(error) => panic!("the client gave up first: {error}"),
    }
}

fn resolver(issued: Issued) -> Arc<SingleCertAndKey> {
    let provider = default_provider();
    let key = issued.key.0.to_vec().try_into().unwrap();
    let pair = CertifiedKey::from_der(issued.chain, key, &provider).unwrap();
    Arc::new(SingleCertAndKey::from(pair))
}

/// A server that shows anything and asks for nothing: hostile ones do not check themselves.
fn serving(issued: Issued) -> Arc<ServerConfig> {
    serving_by(default_provider(), issued)
}

fn serving_by(provider: CryptoProvider, issued: Issued) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(resolver(issued));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// A client of its own ways, without ALPN, whose server is verified by the mesh's rule.
fn dialling(
    roots: &CertificateDer<'static>,
    issued: Option<Issued>,
    provider: CryptoProvider,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut anchors = RootCertStore::empty();
    anchors.add(roots.clone()).unwrap();
    let algorithms = provider.signature_verification_algorithms;
    let expected = only(id("cart"));
    let verifier =
        Arc::new(crate::identity::verify::ExpectServer { roots: Arc::new(anchors), expected, algorithms });
    let builder = ClientConfig::builder_with_details(Arc::new(provider), Arc::new(standing_clock()))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    Arc::new(match issued {
        Some(issued) => builder.with_client_cert_resolver(resolver(issued)),
        None => builder.with_no_client_auth(),
    })
}

#[test]
fn two_workloads_of_one_root_prove_themselves_to_each_other() {
    let mint = Mint::new();
    let expected: Arc<[_]> = Arc::new([id("other"), id("cart")]);
    let (client, server) = shake(
        mint.credentials(&id("till")).client_config(expected),
        mint.credentials(&id("cart")).server_config(),
    )
    .unwrap();
    assert_eq!(VerifiedPeer::of(&client).unwrap().identity(), &id("cart"));
    assert_eq!(VerifiedPeer::of(&server).unwrap().identity(), &id("till"));
    require_h2(&client).unwrap();
    assert_eq!(server.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(server.server_name(), None);
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert_eq!(client.negotiated_cipher_suite().unwrap().suite(), CipherSuite::TLS13_AES_256_GCM_SHA384);
    assert_eq!((client.tls13_tickets_received(), server.handshake_kind()), (0, Some(HandshakeKind::Full)));
}

#[test]
fn an_intermediate_is_carried_to_the_peer() {
    let root = Mint::named("root");
    let middle = root.below("middle");
    let mut issued = middle.issue_for(&id("cart"));
    issued.chain.push(middle.certificate.clone());
    issued.roots = vec![root.certificate.clone()];
    let server = Credentials::new(&id("cart"), issued, &policy()).unwrap();
    let client = root.credentials(&id("till"));
    shake(client.client_config(only(id("cart"))), server.server_config()).unwrap();
    let (_, accepted) = shake(server.client_config(only(id("till"))), client.server_config()).unwrap();
    assert_eq!(VerifiedPeer::of(&accepted).unwrap().identity(), &id("cart"));
}

#[test]
fn a_server_other_than_the_expected_one_is_refused_by_name() {
    let mint = Mint::new();
    let error = client_meets(&mint, mint.issue_for(&id("thief")));
    let text = "peer did not present the expected SAN (spiffe://cluster.local/ns/shop/sa/cart), \
                got spiffe://cluster.local/ns/shop/sa/thief";
    assert!(error.to_string().contains(text), "{error}");
}

#[test]
fn expecting_nobody_accepts_nobody() {
    let mint = Mint::new();
    let client = mint.credentials(&id("till")).client_config(Arc::new([]));
    let Err(Broke::Client(error)) = shake(client, mint.credentials(&id("cart")).server_config()) else {
        panic!("accepted");
    };
    assert!(error.to_string().contains("the expected SAN (), got spiffe://"), "{error}");
}

#[test]
fn each_side_refuses_a_certificate_that_is_not_exactly_one_identity() {
    let mint = Mint::new();
    let (cart, till) = (id("cart"), id("till"));
    let http = "https://cluster.local/ns/shop/sa/cart";
    let cases = [
        (vec![uri(cart.as_str()), uri(till.as_str())], SanError::SeveralUris(2)),
        (vec![uri(cart.as_str()), uri(http)], SanError::SeveralUris(2)),
        (vec![], SanError::NoUri),
        (vec![dns("cart.shop.svc")], SanError::NoUri),
        (vec![uri(http)], SanError::NotSpiffe { uri: http.to_owned(), cause: SpiffeError::Scheme }),
    ];
    for (names, why) in cases {
        let why = PeerError::San(why);
        let issue = || mint.issue(&Mint::leaf(names.clone()));
        assert_eq!(*peer_error(&client_meets(&mint, issue())), why);
        assert_eq!(*peer_error(&server_meets(&mint, issue())), why);
    }
}

#[test]
fn names_that_are_no_uri_do_not_matter() {
    let mint = Mint::new();
    let issued = mint.issue(&Mint::leaf(vec![dns("cart.shop.svc"), uri(id("cart").as_str())]));
    shake(mint.credentials(&id("till")).client_config(only(id("cart"))), serving(issued)).unwrap();
}

#[test]
fn each_side_refuses_another_root() {
    let mint = Mint::new();
    let stranger = || Mint::named("stranger").issue_for(&id("cart"));
    let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
    assert_eq!(client_meets(&mint, stranger()), unknown);
    assert_eq!(server_meets(&mint, stranger()), unknown);
    // The same name with another key is another root as well.
    let namesake = Mint::new().issue_for(&id("cart"));
    let error = client_meets(&mint, namesake);
    assert!(matches!(error, Error::InvalidCertificate(_)), "{error}");
}

#[test]
fn each_side_refuses_a_certificate_outside_its_validity() {
    let mint = Mint::new();
    let mut expired = Mint::leaf(vec![uri(id("cart").as_str())]);
    expired.not_after = (new_year() - seconds(1)).into();
    let mut early = Mint::leaf(vec![uri(id("cart").as_str())]);
    early.not_before = (new_year() + seconds(1)).into();
    for error in [client_meets(&mint, mint.issue(&expired)), server_meets(&mint, mint.issue(&expired))] {
        assert!(
            matches!(error, Error::InvalidCertificate(CertificateError::ExpiredContext { .. })),
            "{error}"
        );
    }
    for error in [client_meets(&mint, mint.issue(&early)), server_meets(&mint, mint.issue(&early))] {
        assert!(
            matches!(error, Error::InvalidCertificate(CertificateError::NotValidYetContext { .. })),
            "{error}"
        );
    }
}

#[test]
fn each_side_refuses_a_certificate_made_for_the_other_role() {
    let mint = Mint::new();
    let leaf = |usage| {
        let mut params = Mint::leaf(vec![uri(id("cart").as_str())]);
        params.extended_key_usages = vec![usage];
        mint.issue(&params)
    };
    for error in [
        client_meets(&mint, leaf(ExtendedKeyUsagePurpose::ClientAuth)),
        server_meets(&mint, leaf(ExtendedKeyUsagePurpose::ServerAuth)),
    ] {
        assert!(
            matches!(error, Error::InvalidCertificate(CertificateError::InvalidPurposeContext { .. })),
            "{error}"
        );
    }
}

#[test]
fn a_caller_of_another_trust_domain_is_refused_unless_it_is_an_alias() {
    let mint = Mint::new();
    let foreign = SpiffeId::new("old.example", "shop", "till").unwrap();
    let error = server_meets(&mint, mint.issue_for(&foreign));
    let accepted: Arc<[String]> = Arc::new(["cluster.local".to_owned()]);
    assert_eq!(*peer_error(&error), PeerError::ForeignTrustDomain { got: foreign.clone(), accepted });

    let tls = Tls { trust_domain_aliases: vec!["old.example".to_owned()], ..Tls::default() };
    let policy = TlsPolicy::new(tls, standing_clock());
    let server = Credentials::new(&id("cart"), mint.issue_for(&id("cart")), &policy).unwrap();
    let client = mint.credentials(&foreign).client_config(only(id("cart")));
    let (_, accepted) = shake(client, server.server_config()).unwrap();
    assert_eq!(VerifiedPeer::of(&accepted).unwrap().identity(), &foreign);
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let mint = Mint::new();
    let client = dialling(&mint.certificate, None, default_provider(), &[&TLS13]);
    let Err(Broke::Server(error)) = shake(client, mint.credentials(&id("cart")).server_config()) else {
        panic!("accepted");
    };
    assert_eq!(error, Error::NoCertificatesPresented);
}

#[test]
fn a_client_that_offers_other_protocols_is_refused_and_one_that_offers_none_is_served() {
    let mint = Mint::new();
    let server = mint.credentials(&id("cart")).server_config();
    let silent =
        dialling(&mint.certificate, Some(mint.issue_for(&id("till"))), default_provider(), &[&TLS13]);
    let mut other = (*silent).clone();
    other.alpn_protocols = vec![b"http/1.1".to_vec()];
    let Err(Broke::Server(error)) = shake(Arc::new(other), server.clone()) else { panic!("accepted") };
    assert_eq!(error, Error::NoApplicationProtocol);
    let (_, accepted) = shake(silent, server).unwrap();
    assert_eq!(accepted.alpn_protocol(), None);
    assert_eq!(VerifiedPeer::of(&accepted).unwrap().identity(), &id("till"));
}

#[test]
fn a_server_that_selects_no_protocol_is_noticed() {
    let mint = Mint::new();
    let mut mute = (*serving(mint.issue_for(&id("cart")))).clone();
    mute.alpn_protocols.clear();
    let client = mint.credentials(&id("till")).client_config(only(id("cart")));
    let (client, _) = shake(client, Arc::new(mute)).unwrap();
    assert_eq!(require_h2(&client), Err(PeerError::NotH2));
}

#[test]
fn before_the_handshake_ends_nobody_is_verified() {
    let mint = Mint::new();
    let server = ServerConnection::new(mint.credentials(&id("cart")).server_config()).unwrap();
    assert_eq!(VerifiedPeer::of(&server), Err(PeerError::Unfinished));
}

#[test]
fn a_connection_that_asked_for_no_certificate_verifies_nobody() {
    let mint = Mint::new();
    let client = mint.credentials(&id("till")).client_config(only(id("cart")));
    let (_, server) = shake(client, serving(mint.issue_for(&id("cart")))).unwrap();
    assert_eq!(VerifiedPeer::of(&server), Err(PeerError::NoCertificate));
}

#[test]
fn tls_1_2_is_refused_unless_switched_on() {
    let mint = Mint::new();
    let client =
        || dialling(&mint.certificate, Some(mint.issue_for(&id("till"))), default_provider(), &[&TLS12]);
    let Err(Broke::Server(error)) = shake(client(), mint.credentials(&id("cart")).server_config()) else {
        panic!("accepted");
    };
    assert!(matches!(error, Error::PeerIncompatible(_)), "{error}");

    let policy = TlsPolicy::new(Tls { tls12: true, ..Tls::default() }, standing_clock());
    let server = Credentials::new(&id("cart"), mint.issue_for(&id("cart")), &policy).unwrap();
    let (_, accepted) = shake(client(), server.server_config()).unwrap();
    assert_eq!(accepted.protocol_version(), Some(ProtocolVersion::TLSv1_2));
    assert_eq!(VerifiedPeer::of(&accepted).unwrap().identity(), &id("till"));
}

#[test]
fn chacha20_is_neither_offered_nor_accepted() {
    let mint = Mint::new();
    let offered: Vec<_> = mint
        .credentials(&id("till"))
        .client_config(only(id("cart")))
        .crypto_provider()
        .cipher_suites
        .iter()
        .map(|suite| suite.suite())
        .collect();
    assert_eq!(offered, [CipherSuite::TLS13_AES_256_GCM_SHA384, CipherSuite::TLS13_AES_128_GCM_SHA256]);
    let provider = CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_CHACHA20_POLY1305_SHA256],
        ..default_provider()
    };
    let client = dialling(&mint.certificate, Some(mint.issue_for(&id("till"))), provider, &[&TLS13]);
    let Err(Broke::Server(error)) = shake(client, mint.credentials(&id("cart")).server_config()) else {
        panic!("accepted");
    };
    assert!(matches!(error, Error::PeerIncompatible(_)), "{error}");
}

#[test]
fn a_peer_without_the_hybrid_group_is_served_unless_only_that_is_allowed() {
    let mint = Mint::new();
    for group in [kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1] {
        let classic = |group: &'static dyn SupportedKxGroup| {
            let provider = CryptoProvider { kx_groups: vec![group], ..default_provider() };
            dialling(&mint.certificate, Some(mint.issue_for(&id("till"))), provider, &[&TLS13])
        };
        let server = mint.credentials(&id("cart")).server_config();
        let (client, _) = shake(classic(group), server).unwrap();
        assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), group.name());

        let tls = Tls { pqc_only: true, tls12: true, ..Tls::default() };
        let strict = TlsPolicy::new(tls, standing_clock());
        let server = Credentials::new(&id("cart"), mint.issue_for(&id("cart")), &strict).unwrap();
        let Err(Broke::Server(error)) = shake(classic(group), server.server_config()) else {
            panic!("accepted {group:?}");
        };
        assert!(matches!(error, Error::PeerIncompatible(_)), "{error}");
    }
}

#[test]
fn a_server_without_the_hybrid_group_is_reached_by_the_next_one() {
    let mint = Mint::new();
    for group in [kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1] {
        let provider = CryptoProvider { kx_groups: vec![group], ..default_provider() };
        let client = mint.credentials(&id("till")).client_config(only(id("cart")));
        let (client, _) = shake(client, serving_by(provider, mint.issue_for(&id("cart")))).unwrap();
        assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), group.name());
    }
}

#[test]
fn a_second_uri_that_is_no_text_is_not_overlooked() {
    let mint = Mint::new();
    let cart = id("cart");
    let (good, length) = (cart.as_str().as_bytes(), u8::try_from(cart.as_str().len()).unwrap());
    let undecodable = [0x86, 1, 0xff];
    let readable = [&[0x86, length], good].concat();
    let refused = |names: &[u8]| {
        let san = [&[0x30, u8::try_from(names.len()).unwrap()], names].concat();
        let mut params = Mint::leaf(vec![]);
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], san)];
        let why = peer_error(&server_meets(&mint, mint.issue(&params))).clone();
        assert_eq!(*peer_error(&client_meets(&mint, mint.issue(&params))), why);
        why
    };
    let both = [&readable[..], &undecodable].concat();
    assert_eq!(refused(&both), PeerError::San(SanError::SeveralUris(2)));
    assert!(matches!(refused(&undecodable), PeerError::San(SanError::Unreadable(_))));
}

#[test]
fn every_handshake_is_a_full_one() {
    let mint = Mint::new();
    let server = mint.credentials(&id("cart")).server_config();
    let eager = |version| {
        let issued = mint.issue_for(&id("till"));
        dialling(&mint.certificate, Some(issued), default_provider(), &[version])
    };
    let policy = TlsPolicy::new(Tls { tls12: true, ..Tls::default() }, standing_clock());
    let old = Credentials::new(&id("cart"), mint.issue_for(&id("cart")), &policy).unwrap().server_config();
    let ours = mint.credentials(&id("till")).client_config(only(id("cart")));
    let generous = serving(mint.issue_for(&id("cart")));
    for (client, server) in [(eager(&TLS13), server), (eager(&TLS12), old), (ours, generous)] {
        for _ in 0..2 {
            let (client, _) = shake(client.clone(), server.clone()).unwrap();
            assert_eq!(client.handshake_kind().map(|kind| kind != HandshakeKind::Resumed), Some(true));
        }
    }
}

#[test]
fn the_refused_side_is_told_by_an_alert() {
    let mint = Mint::new();
    let client = mint.credentials(&id("till")).client_config(only(id("other")));
    let name = ServerName::try_from("cart.example").unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(mint.credentials(&id("cart")).server_config()).unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    server.read_tls(&mut wire.as_slice()).unwrap();
    server.process_new_packets().unwrap();
    wire.clear();
    server.write_tls(&mut wire).unwrap();
    client.read_tls(&mut wire.as_slice()).unwrap();
    client.process_new_packets().unwrap_err();
    wire.clear();
    client.write_tls(&mut wire).unwrap();
    let answer = feed(&mut wire.as_slice(), |wire| {
        server.read_tls(wire).unwrap();
        server.process_new_packets().map(drop)
    });
    assert_eq!(answer, Err(Error::AlertReceived(AlertDescription::CertificateUnknown)));
}

#[test]
fn a_configuration_for_the_same_peers_is_built_once_and_another_set_gets_its_own() {
    let mint = Mint::new();
    let credentials = mint.credentials(&id("till"));
    let cart = credentials.client_config(only(id("cart")));
    assert!(Arc::ptr_eq(&cart, &credentials.client_config(only(id("cart")))));
    let till = credentials.client_config(only(id("till")));
    assert!(!Arc::ptr_eq(&cart, &till));
    // One that was made for other peers must not let them in here.
    let server = || mint.credentials(&id("cart")).server_config();
    shake(cart, server()).unwrap();
    assert!(matches!(shake(till, server()), Err(Broke::Client(_))));
    // And other credentials have none of these.
    let renewed = mint.credentials(&id("till"));
    assert!(!Arc::ptr_eq(
        &renewed.client_config(only(id("cart"))),
        &credentials.client_config(only(id("cart")))
    ));
}
