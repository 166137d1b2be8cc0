//! istiod as an authority: what it is asked, and what is made of its answers.

use std::time::Duration;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::*;
use crate::control::testing::{Proof, Server, TOKEN};
use crate::control::{self, Address, Roots, Token};
use crate::identity::testing::{Answer, IstioCertificateRequest, PATH, Signer};
use crate::identity::{Authority as _, IstiodCa};

const DAY: Duration = Duration::from_secs(86_400);

fn who(name: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", name).unwrap()
}

fn config(server: &Server) -> control::Config {
    let (provider, versions) = policy().parameters();
    control::Config {
        address: Address::parse(&format!("https://{}", server.addr)).unwrap(),
        alternative: None,
        roots: Roots::File(server.root()),
        token: Token::File(server.token()),
        cluster: "east".into(),
        headers: Vec::new(),
        provider,
        versions,
    }
}

fn policy() -> TlsPolicy {
    TlsPolicy::new(Tls::default(), Clock::system())
}

fn authority(server: &Server) -> IstiodCa {
    IstiodCa::new(config(server))
}

/// What an operator would read of a failure.
fn told(cause: &dyn std::error::Error) -> String {
    crate::identity::keeper::chain(cause)
}

/// Asks for `name`, and answers like `how`.
async fn asked(
    ca: &IstiodCa,
    server: &mut Server,
    signer: &Signer,
    name: &str,
    how: Answer,
) -> Result<Credentials, String> {
    let issuing = ca.issue(who(name), DAY);
    let answering = async {
        let mut call = server.call().await;
        let request: IstioCertificateRequest = call.message().await;
        call.answer(&signer.answer(&request, how));
    };
    let (issued, ()) = tokio::join!(issuing, answering);
    let issued = issued.map_err(|cause| told(&cause))?;
    Credentials::new(&who(name), issued, &policy()).map_err(|cause| told(&cause))
}

#[tokio::test]
async fn a_request_is_as_istiod_wants_it_and_its_answer_a_certificate() {
    let place = tempfile::tempdir().unwrap();
    let mut server = Server::start(Proof::Good, place.path());
    let (ca, signer) = (authority(&server), Signer::default());
    let issuing = ca.issue(who("web"), DAY);
    let answering = async {
        let mut call = server.call().await;
        assert_eq!(call.path, PATH);
        assert_eq!(call.headers["authorization"], format!("Bearer {TOKEN}"));
        assert_eq!(call.headers["clusterid"], "east");
        let request: IstioCertificateRequest = call.message().await;
        assert_eq!(request.validity_duration, 86_400);
        let (_, pem) = x509_parser::pem::parse_x509_pem(request.csr.as_bytes()).unwrap();
        assert_eq!(pem.label, "CERTIFICATE REQUEST");
        let (_, csr) = X509CertificationRequest::from_der(&pem.contents).unwrap();
        csr.verify_signature().unwrap();
        assert_eq!(csr.certification_request_info.subject.iter().count(), 0);
        // ecdsa-with-SHA256.
        assert_eq!(csr.signature_algorithm.algorithm.to_id_string(), "1.2.840.10045.4.3.2");
        let requested: Vec<_> = csr.requested_extensions().unwrap().collect();
        let [ParsedExtension::SubjectAlternativeName(names)] = requested[..] else { panic!("{requested:?}") };
        assert_eq!(names.general_names, [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]);
        // 2.5.29.17, critical: the octets of the extension's head.
        let critical = [0x06, 0x03, 0x55, 0x1d, 0x11, 0x01, 0x01, 0xff];
        assert!(pem.contents.windows(critical.len()).any(|at| at == critical));
        call.answer(&signer.answer(&request, Answer::Good));
    };
    let (issued, ()) = tokio::join!(issuing, answering);
    let credentials = Credentials::new(&who("web"), issued.unwrap(), &policy()).unwrap();
    assert_eq!((credentials.chain().len(), credentials.roots().len()), (2, 2));
    // Another request goes over the same connection, and has another key.
    let again = asked(&ca, &mut server, &signer, "web", Answer::Good).await.unwrap();
    assert_ne!(again.chain()[0].der, credentials.chain()[0].der);
}

#[tokio::test]
async fn an_answer_that_is_not_what_was_asked_is_refused_and_the_next_one_is_not() {
    let place = tempfile::tempdir().unwrap();
    let mut server = Server::start(Proof::Good, place.path());
    let (ca, signer) = (authority(&server), Signer::default());
    for (how, why) in [
        (Answer::OtherIdentity, "somebody-else"),
        (Answer::Expired, "expired"),
        (Answer::OtherKey, "key"),
        (Answer::WrongOrder, ""),
        (Answer::Long, "101 certificates"),
        (Answer::NoRoots, "single element"),
        (Answer::Empty, "it is empty"),
        (Answer::Garbage, "element 0"),
        (Answer::NoCertificate, ""),
    ] {
        let refused = asked(&ca, &mut server, &signer, "web", how).await.expect_err("it is not usable");
        assert!(refused.contains(why), "{how:?}: {refused}");
        asked(&ca, &mut server, &signer, "cart", Answer::Good)
            .await
            .unwrap_or_else(|cause| panic!("after {how:?}: {cause}"));
    }
}

#[tokio::test]
async fn a_refusal_says_why_and_a_server_that_comes_back_is_found() {
    let place = tempfile::tempdir().unwrap();
    let mut server = Server::start(Proof::Good, place.path());
    let (ca, signer) = (authority(&server), Signer::default());
    let refusing = async {
        let mut call = server.call().await;
        call.message::<IstioCertificateRequest>().await;
        call.end(16, "authentication failure");
    };
    let (refused, ()) = tokio::join!(ca.issue(who("web"), DAY), refusing);
    let why = told(&refused.unwrap_err());
    assert!(why.contains("Unauthenticated: authentication failure"), "{why}");
    // Broken off, the same port answers again afterwards.
    let breaking = async {
        let mut call = server.call().await;
        call.message::<IstioCertificateRequest>().await;
        call.cut();
    };
    let (broken, ()) = tokio::join!(ca.issue(who("web"), DAY), breaking);
    broken.unwrap_err();
    asked(&ca, &mut server, &signer, "web", Answer::Good).await.unwrap();
    // A token that is not there is told, and nothing is sent.
    std::fs::write(server.token(), "\n").unwrap();
    let why = told(&ca.issue(who("web"), DAY).await.unwrap_err());
    assert!(why.contains("the token in") && why.contains("it is empty"), "{why}");
    assert!(!server.is_called());
}

#[tokio::test]
async fn who_does_not_prove_its_name_is_not_asked() {
    for proof in [Proof::OtherName, Proof::OtherRoot, Proof::SelfSigned, Proof::Expired, Proof::NotYet] {
        let place = tempfile::tempdir().unwrap();
        let server = Server::start(proof, place.path());
        let why = told(&authority(&server).issue(who("web"), DAY).await.unwrap_err());
        assert!(why.contains("TLS with"), "{proof:?}: {why}");
        assert!(!server.is_called(), "{proof:?}");
    }
}
