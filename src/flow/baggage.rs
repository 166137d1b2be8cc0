//! The `baggage` header: what one proxy tells the other about the workload it speaks for. Only labels come of
//! it.
//!
//! Source: Istio's use of W3C Baggage §3.2: comma-joined `key=value` without percent-encoding.

use crate::telemetry::{Text, WorkloadLabels};

/// Bytes of all `baggage` fields of one message that are read (W3C Baggage §3.3.2).
const MAX_LEN: usize = 8192;
/// Bytes of one value: Kubernetes names have at most 253.
const MAX_VALUE: usize = 256;

const CLUSTER: &str = "k8s.cluster.name";
const NAMESPACE: &str = "k8s.namespace.name";
const SERVICE: &str = "service.name";
const REVISION: &str = "service.version";
const REGION: &str = "cloud.region";
const ZONE: &str = "cloud.availability_zone";

/// What kind of owner a workload's name belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WorkloadKind {
    /// A Deployment.
    Deployment,
    /// A CronJob.
    CronJob,
    /// A Job.
    Job,
    /// Anything else; what istiod sends today.
    #[default]
    Pod,
}

impl WorkloadKind {
    const ALL: [Self; 4] = [Self::Deployment, Self::CronJob, Self::Pod, Self::Job];

    fn key(self) -> &'static str {
        match self {
            Self::Deployment => "k8s.deployment.name",
            Self::CronJob => "k8s.cronjob.name",
            Self::Job => "k8s.job.name",
            Self::Pod => "k8s.pod.name",
        }
    }
}

/// One workload as a peer describes it. Nothing here is proven: it must decide nothing but labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// Cluster id.
    pub cluster: Option<Text>,
    /// Kubernetes namespace.
    pub namespace: Option<Text>,
    /// What [`Baggage::workload`] is the name of.
    pub kind: WorkloadKind,
    /// Name of the deployment or the like.
    pub workload: Option<Text>,
    /// Canonical service.
    pub service: Option<Text>,
    /// Canonical revision.
    pub revision: Option<Text>,
    /// Region.
    pub region: Option<Text>,
    /// Zone.
    pub zone: Option<Text>,
}

/// Why a peer's baggage is not read at all. The connection goes on without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BaggageError {
    /// It has bytes outside visible ASCII.
    #[error("baggage has a byte that is not visible ASCII")]
    Character,
    /// It is longer than 8,192 bytes.
    #[error("baggage is longer than {MAX_LEN} bytes")]
    TooLong,
}

impl Baggage {
    /// The header value; None when there is nothing to say.
    ///
    /// A value that is empty, has one of `,` `=` `;`, or a character that is not visible ASCII, is left out:
    /// receivers do not decode, so any escape would become part of the name.
    pub fn encode(&self) -> Option<String> {
        let mut out = String::new();
        for (key, value) in [
            (CLUSTER, &self.cluster),
            (NAMESPACE, &self.namespace),
            (self.kind.key(), &self.workload),
            (SERVICE, &self.service),
            (REVISION, &self.revision),
            (REGION, &self.region),
            (ZONE, &self.zone),
        ] {
            let Some(value) = value.as_deref().filter(|value| fits(value)) else { continue };
            if !out.is_empty() {
                out.push(',');
            }
            out.push_str(key);
            out.push('=');
            out.push_str(value);
        }
        (!out.is_empty()).then_some(out)
    }

    /// Reads all `baggage` fields of one message, in order. None of them is a message without baggage.
    ///
    /// As tolerant as the reference and somewhat more: unknown keys and members without `=` are ignored, the
    /// last of two equal keys counts, an empty value unsets. Space around keys and values, and properties
    /// after `;`, are W3C's and are taken off. A value longer than 256 bytes is treated as empty: no such
    /// name exists.
    ///
    /// # Errors
    /// [`BaggageError`]: nothing of it is to be used.
    pub fn decode<'a>(fields: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<Self>, BaggageError> {
        let mut baggage = None;
        let mut len = 0_usize;
        for field in fields {
            len = len.saturating_add(field.len());
            if len > MAX_LEN {
                return Err(BaggageError::TooLong);
            }
            let text = std::str::from_utf8(field).map_err(|_| BaggageError::Character)?;
            if !text.bytes().all(|c| c == b'\t' || (b' '..=b'~').contains(&c)) {
                return Err(BaggageError::Character);
            }
            let baggage = baggage.get_or_insert_with(Self::default);
            text.split(',')
                .filter_map(|member| member.split_once('='))
                .for_each(|(key, value)| baggage.put(key, value));
        }
        Ok(baggage)
    }

    fn put(&mut self, key: &str, value: &str) {
        let key = key.trim();
        let value = value.split_once(';').map_or(value, |(value, _properties)| value).trim();
        let value = Some(value).filter(|value| (1..=MAX_VALUE).contains(&value.len())).map(Text::from);
        match key {
            CLUSTER => self.cluster = value,
            NAMESPACE => self.namespace = value,
            SERVICE => self.service = value,
            REVISION => self.revision = value,
            REGION => self.region = value,
            ZONE => self.zone = value,
            _ => {
                if let Some(kind) = WorkloadKind::ALL.into_iter().find(|kind| kind.key() == key) {
                    self.kind = kind;
                    self.workload = value;
                }
            }
        }
    }

    /// The labels of a workload known by its baggage only. Its application is the workload's name: baggage
    /// has no key for it, and this is what the reference shows.
    pub fn labels(&self) -> WorkloadLabels {
        WorkloadLabels {
            workload: self.workload.clone(),
            canonical_service: self.service.clone(),
            canonical_revision: self.revision.clone(),
            namespace: self.namespace.clone(),
            app: self.workload.clone(),
            version: self.revision.clone(),
            cluster: self.cluster.clone(),
            region: self.region.clone(),
            zone: self.zone.clone(),
        }
    }
}

fn fits(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|c| c.is_ascii_graphic() && !b",=;".contains(&c))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(value: &str) -> Option<Text> {
        Some(value.into())
    }

    fn full() -> Baggage {
        Baggage {
            cluster: text("Kubernetes"),
            namespace: text("shop"),
            kind: WorkloadKind::Deployment,
            workload: text("cart-v1"),
            service: text("cart"),
            revision: text("v1"),
            region: text("eu"),
            zone: text("eu-1"),
        }
    }

    #[test]
    fn baggage_has_istios_keys_in_istios_order() {
        let expected = concat!(
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart-v1,service.name=cart,",
            "service.version=v1,cloud.region=eu,cloud.availability_zone=eu-1"
        );
        assert_eq!(full().encode().as_deref(), Some(expected));
        assert_eq!(Baggage::default().encode(), None);
    }

    #[test]
    fn a_value_that_would_corrupt_the_header_is_left_out() {
        for bad in ["", "a,service.name=b", "a=b", "a;b", "a b", "a\nb", "Zürich", "\u{7f}"] {
            let baggage = Baggage { cluster: text("far"), region: text(bad), ..Baggage::default() };
            assert_eq!(baggage.encode().as_deref(), Some("k8s.cluster.name=far"), "{bad:?}");
        }
    }

    #[test]
    fn baggage_is_read_tolerantly() {
        let read =
            |fields: &[&str]| Baggage::decode(fields.iter().map(|field| field.as_bytes())).unwrap().unwrap();
        let last = read(&["service.name=a,k8s.pod.name=x", "other=1,,service.name = b ;p=1, k8s.job.name=y"]);
        let expected = Baggage {
            service: text("b"),
            kind: WorkloadKind::Job,
            workload: text("y"),
            ..Baggage::default()
        };
        assert_eq!(last, expected);
        assert_eq!(read(&["service.name=a,service.name="]), Baggage::default());
        assert_eq!(read(&["service.name=a=b"]).service, text("a=b"));
        assert_eq!(read(&["nonsense"]), Baggage::default());
        assert_eq!(read(&[&format!("service.name={}", "a".repeat(257))]), Baggage::default());
        assert_eq!(Baggage::decode([]), Ok(None));
    }

    #[test]
    fn baggage_that_cannot_be_trusted_is_not_read() {
        assert_eq!(Baggage::decode([&b"service.name=Z\xc3\xbcrich"[..]]), Err(BaggageError::Character));
        assert_eq!(Baggage::decode([&b"service.name=a\x00"[..]]), Err(BaggageError::Character));
        let half = vec![b'a'; 4097];
        assert_eq!(Baggage::decode([&half[..], &half[..]]), Err(BaggageError::TooLong));
    }

    proptest! {
        #[test]
        fn baggage_survives_the_way(values in proptest::collection::vec("[!-+\\--:<>-~]{1,256}", 7)) {
            let mut values = values.iter().map(|value| text(value));
            let mut next = || values.next().flatten();
            let sent = Baggage {
                cluster: next(),
                namespace: next(),
                kind: WorkloadKind::CronJob,
                workload: next(),
                service: next(),
                revision: next(),
                region: next(),
                zone: next(),
            };
            let header = sent.encode().unwrap();
            prop_assert_eq!(Baggage::decode([header.as_bytes()]), Ok(Some(sent)));
        }

        #[test]
        fn reading_baggage_never_panics(fields in proptest::collection::vec(any::<Vec<u8>>(), 0..4)) {
            let _ = Baggage::decode(fields.iter().map(|field| &field[..]));
        }
    }
}
