//! What may become credentials.

use std::time::SystemTime;

use crate::identity::{CredentialError, Credentials, Issued, PrivateKey, SanError};

use super::*;

fn refusal(issued: Issued) -> CredentialError {
    Credentials::new(&id("cart"), issued, &policy()).unwrap_err()
}

#[test]
fn what_was_issued_for_the_workload_is_taken() {
    let credentials = Mint::new().credentials(&id("cart"));
    assert_eq!(credentials.identity(), &id("cart"));
    assert_eq!(credentials.not_before(), new_year() - seconds(120));
    assert_eq!(credentials.not_after(), new_year() + hours(24));
    assert!(!credentials.expired(new_year() + hours(24) - seconds(1)));
    assert!(credentials.expired(new_year() + hours(24)));
}

#[test]
fn a_leaf_that_is_not_valid_yet_is_taken() {
    let mut params = Mint::leaf(vec![uri(id("cart").as_str())]);
    params.not_before = (new_year() + hours(1)).into();
    Credentials::new(&id("cart"), Mint::new().issue(&params), &policy()).unwrap();
}

#[test]
fn a_certificate_for_somebody_else_is_discarded() {
    let issued = Mint::new().issue_for(&id("till"));
    let error = refusal(issued);
    assert!(
        matches!(&error, CredentialError::WrongIdentity { wanted, got } if *wanted == id("cart") && *got == id("till")),
        "{error}"
    );
}

#[test]
fn a_certificate_with_two_identities_is_discarded() {
    let names = vec![uri(id("cart").as_str()), uri(id("till").as_str())];
    let error = refusal(Mint::new().issue(&Mint::leaf(names)));
    assert!(matches!(error, CredentialError::San(SanError::SeveralUris(2))), "{error}");
}

#[test]
fn a_key_of_another_certificate_is_discarded() {
    let mint = Mint::new();
    let mut issued = mint.issue_for(&id("cart"));
    issued.key = mint.issue_for(&id("cart")).key;
    let error = refusal(issued);
    assert!(matches!(error, CredentialError::Key(_)), "{error}");
}

#[test]
fn a_key_that_is_no_key_is_discarded() {
    let mut issued = Mint::new().issue_for(&id("cart"));
    issued.key = PrivateKey::from_pkcs8(b"no key".to_vec());
    let error = refusal(issued);
    assert!(matches!(error, CredentialError::Key(_)), "{error}");
}

#[test]
fn an_expired_certificate_is_discarded() {
    let mut params = Mint::leaf(vec![uri(id("cart").as_str())]);
    params.not_after = new_year().into();
    let error = refusal(Mint::new().issue(&params));
    assert!(matches!(error, CredentialError::Expired), "{error}");
}

#[test]
fn a_validity_that_ends_before_it_starts_is_discarded() {
    let mut params = Mint::leaf(vec![uri(id("cart").as_str())]);
    params.not_before = (new_year() + hours(48)).into();
    let error = refusal(Mint::new().issue(&params));
    assert!(matches!(error, CredentialError::Validity { index: 0 }), "{error}");
}

#[test]
fn a_chain_must_be_in_order_and_short() {
    let root = Mint::named("root");
    let middle = root.below("middle");
    let mut ordered = middle.issue_for(&id("cart"));
    ordered.chain.push(middle.certificate.clone());
    ordered.roots = vec![root.certificate.clone()];
    Credentials::new(&id("cart"), ordered, &policy()).unwrap();

    let mut strange = middle.issue_for(&id("cart"));
    strange.chain.push(Mint::named("stranger").certificate);
    let error = refusal(strange);
    assert!(matches!(error, CredentialError::Order { index: 0 }), "{error}");

    let mut long = middle.issue_for(&id("cart"));
    long.chain.extend(std::iter::repeat_n(middle.certificate.clone(), 8));
    let error = refusal(long);
    assert!(matches!(error, CredentialError::TooLong { certificates: 9, .. }), "{error}");

    let mut large = middle.issue_for(&id("cart"));
    large.chain.push(vec![0; 16 * 1024].into());
    let error = refusal(large);
    assert!(matches!(error, CredentialError::TooLong { certificates: 2, .. }), "{error}");

    let mut empty = middle.issue_for(&id("cart"));
    empty.chain.clear();
    let error = refusal(empty);
    assert!(matches!(error, CredentialError::EmptyChain), "{error}");
}

#[test]
fn bytes_that_are_no_certificate_are_discarded() {
    let mut issued = Mint::new().issue_for(&id("cart"));
    let mut trailing = issued.chain[0].to_vec();
    trailing.push(0);
    issued.chain = vec![trailing.into()];
    let error = refusal(issued);
    assert!(matches!(error, CredentialError::Unreadable { which: "certificate", index: 0, .. }), "{error}");
}

#[test]
fn without_a_root_nobody_could_be_verified() {
    let mut issued = Mint::new().issue_for(&id("cart"));
    issued.roots.clear();
    let error = refusal(issued);
    assert!(matches!(error, CredentialError::NoRoots), "{error}");

    let mut issued = Mint::new().issue_for(&id("cart"));
    issued.roots.push(b"garbage".to_vec().into());
    let error = refusal(issued);
    assert!(matches!(error, CredentialError::Unreadable { which: "root", index: 1, .. }), "{error}");
}

#[test]
fn debug_output_shows_no_key() {
    let mint = Mint::new();
    let issued = mint.issue_for(&id("cart"));
    assert!(format!("{issued:?}").contains("PrivateKey(..)"));
    let shown = format!("{:?}", mint.credentials(&id("cart")));
    assert!(shown.starts_with("Credentials { identity: spiffe://cluster.local/ns/shop/sa/cart, serial: "));
    assert!(shown.ends_with(", .. }") && !shown.contains("key"), "{shown}");
}

#[test]
fn times_of_any_year_are_read() {
    let mut params = Mint::leaf(vec![uri(id("cart").as_str())]);
    params.not_before = rcgen::date_time_ymd(1950, 1, 1);
    params.not_after = rcgen::date_time_ymd(9999, 12, 31);
    let credentials = Credentials::new(&id("cart"), Mint::new().issue(&params), &policy()).unwrap();
    assert!(credentials.not_before() < SystemTime::UNIX_EPOCH);
    assert!(credentials.not_after() > new_year() + hours(24 * 365 * 7000));
}
