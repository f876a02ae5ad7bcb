//! Tokens of service accounts: JSON web tokens (RFC 7519) that this server signs and reads.
//!
//! A token names its service account by unique id, and the object that it is bound to, if
//! any. It is worth nothing when its time is over or one of these is gone, which is
//! looked up each time: nobody has to keep a list of what was given out.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use serde_json::{Value, json};

use super::api::Api;
use super::object::{self, Key};
use super::status::{ApiError, FieldError};
use super::user::User;

/// Who gives out the tokens, and for whom they are meant unless somebody else is named.
pub(super) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Tokens are good for at least this long.
const EXPIRATION_SECONDS_MIN: i64 = 600;
/// And at most for this long, as in Kubernetes.
const EXPIRATION_SECONDS_MAX: i64 = 1 << 32;
/// What is given to those who do not say.
const EXPIRATION_SECONDS_DEFAULT: i64 = 3_600;

/// What a token is asked for.
#[derive(Clone, Debug, Default)]
pub struct TokenRequest {
    pub namespace: String,
    pub service_account: String,
    /// Empty: this API server.
    pub audiences: Vec<String>,
    /// 0: an hour.
    pub expiration_seconds: i64,
    pub bound: Option<BoundObject>,
}

/// The object without which a token is worth nothing.
#[derive(Clone, Debug)]
pub struct BoundObject {
    /// `Pod`, `Secret` or `Node`.
    pub kind: String,
    pub name: String,
    /// Empty: whichever object has the name now.
    pub uid: String,
}

/// A token, and when it ends.
#[derive(Clone, Debug)]
pub struct IssuedToken {
    pub token: String,
    pub expires: Timestamp,
}

/// Signs tokens.
pub(super) struct Signer {
    key: EcdsaKeyPair,
    key_id: String,
}

impl Signer {
    /// A new key, PKCS #8.
    pub(super) fn generate() -> anyhow::Result<Vec<u8>> {
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map(|document| document.as_ref().to_vec())
            .map_err(|error| anyhow::anyhow!("making the key of tokens: {error}"))
    }

    pub(super) fn new(pkcs8: &[u8]) -> anyhow::Result<Self> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)
            .map_err(|error| anyhow::anyhow!("reading the key of tokens: {error}"))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        Ok(Self { key_id: URL_SAFE_NO_PAD.encode(digest), key })
    }

    fn sign(&self, claims: &Value) -> Result<String, ApiError> {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = json!({ "alg": "ES256", "kid": self.key_id });
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(|error| ApiError::internal(format!("signing a token: {error}")))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token that this key has signed.
    fn verify(&self, token: &str) -> Option<Value> {
        let (signed, signature) = token.rsplit_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref());
        key.verify(signed.as_bytes(), &signature).ok()?;
        // What we signed ourselves has our header.
        let claims = URL_SAFE_NO_PAD.decode(signed.split('.').nth(1)?).ok()?;
        serde_json::from_slice(&claims).ok()
    }

    /// The public key as others need it to verify tokens (RFC 7517).
    pub(super) fn key_set(&self) -> Value {
        // Uncompressed: a byte 4, then both coordinates.
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        json!({ "keys": [{ "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y) }] })
    }
}

/// Where the key set is, for OpenID Connect.
pub(super) fn openid_configuration() -> Value {
    json!({ "issuer": ISSUER, "jwks_uri": format!("{ISSUER}/openid/v1/jwks"),
        "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"] })
}

impl Api {
    /// Makes a token for a service account.
    pub fn create_token(&self, request: &TokenRequest) -> Result<IssuedToken, ApiError> {
        let (namespace, name) = (&request.namespace, &request.service_account);
        let account = self
            .store
            .get("serviceaccounts", &Key::new(namespace, name))
            .ok_or_else(|| ApiError::not_found("serviceaccounts", "", name))?;
        let seconds = match request.expiration_seconds {
            0 => EXPIRATION_SECONDS_DEFAULT,
            seconds => seconds,
        };
        check_expiration(name, seconds)?;
        let mut private = json!({ "namespace": namespace,
            "serviceaccount": { "name": name, "uid": account.uid } });
        if let Some(bound) = &request.bound {
            self.bind_token(request, bound, &mut private)?;
        }
        let audiences = match request.audiences.as_slice() {
            [] => vec![ISSUER.to_owned()],
            named => named.to_vec(),
        };
        let now = Timestamp::now().as_second();
        let claims = json!({ "aud": audiences, "exp": now + seconds, "iat": now, "iss": ISSUER,
            "jti": object::new_uid(), "kubernetes.io": private, "nbf": now,
            "sub": super::user::service_account_name(namespace, name) });
        let token = self.signer.sign(&claims)?;
        let expires = Timestamp::from_second(now + seconds)
            .map_err(|error| ApiError::internal(format!("the end of a token: {error}")))?;
        Ok(IssuedToken { token, expires })
    }

    /// Writes down what the token depends on.
    fn bind_token(
        &self,
        request: &TokenRequest,
        bound: &BoundObject,
        private: &mut Value,
    ) -> Result<(), ApiError> {
        let (resource, namespace) = match bound.kind.as_str() {
            "Pod" => ("pods", request.namespace.as_str()),
            "Secret" => ("secrets", request.namespace.as_str()),
            "Node" => ("nodes", ""),
            other => {
                let message =
                    format!("cannot bind token for serviceaccount to object of type \"{other}\"");
                return Err(ApiError::bad_request(message));
            }
        };
        let object = self
            .store
            .get(resource, &Key::new(namespace, &bound.name))
            .ok_or_else(|| ApiError::not_found(resource, "", &bound.name))?;
        if !bound.uid.is_empty() && *bound.uid != *object.uid {
            let why = format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                bound.uid
            );
            return Err(ApiError::conflict(resource, "", &bound.name, &why));
        }
        private[bound.kind.to_lowercase()] = json!({ "name": bound.name, "uid": object.uid });
        if resource != "pods" {
            return Ok(());
        }
        let pod = object.value();
        let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default();
        if account != request.service_account {
            let message = format!(
                "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name",
                request.service_account
            );
            return Err(ApiError::bad_request(message));
        }
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if let Some(node) = self.store.get("nodes", &Key::new("", node)) {
            private["node"] = json!({ "name": node.key.name, "uid": node.uid });
        }
        Ok(())
    }

    /// Whose token this is, and which of the audiences it is for.
    pub(super) fn user_of_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(User, Vec<String>), &'static str> {
        let claims = self.signer.verify(token).ok_or("the token is not one of this cluster's")?;
        let now = Timestamp::now().as_second();
        if claims["exp"].as_i64().is_none_or(|end| now >= end) {
            return Err("service account token has expired");
        }
        let meant: Vec<String> = claims["aud"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .filter(|one| audiences.iter().any(|audience| audience == one))
            .map(str::to_owned)
            .collect();
        if meant.is_empty() {
            return Err("token audiences do not include this server");
        }
        let private = &claims["kubernetes.io"];
        let namespace = private["namespace"].as_str().unwrap_or_default();
        let is_there = |resource: &str, namespace: &str, claimed: &Value| {
            let name = claimed["name"].as_str().unwrap_or_default();
            let object = self.store.get(resource, &Key::new(namespace, name));
            object.is_some_and(|object| claimed["uid"] == *object.uid)
        };
        let account = &private["serviceaccount"];
        if !is_there("serviceaccounts", namespace, account) {
            return Err("service account has been deleted");
        }
        let name = account["name"].as_str().unwrap_or_default();
        let uid = account["uid"].as_str().unwrap_or_default();
        let mut user = User::of_service_account(namespace, name, uid);
        let jti = claims["jti"].as_str().unwrap_or_default();
        let mut tell = |key: &str, value: String| {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        };
        tell("credential-id", format!("JTI={jti}"));
        for (kind, resource, namespace) in
            [("pod", "pods", namespace), ("secret", "secrets", namespace), ("node", "nodes", "")]
        {
            let claimed = &private[kind];
            if claimed.is_null() {
                continue;
            }
            // A token that is bound to a pod outlives its node.
            let outlives = kind == "node" && private["pod"].is_object();
            if !outlives && !is_there(resource, namespace, claimed) {
                return Err("the object that the token is bound to is gone");
            }
            for part in ["name", "uid"] {
                let value = claimed[part].as_str().unwrap_or_default().to_owned();
                tell(&format!("{kind}-{part}"), value);
            }
        }
        Ok((user, meant))
    }
}

fn check_expiration(name: &str, seconds: i64) -> Result<(), ApiError> {
    let detail = match seconds {
        ..EXPIRATION_SECONDS_MIN => "may not specify a duration less than 10 minutes",
        EXPIRATION_SECONDS_MIN..=EXPIRATION_SECONDS_MAX => return Ok(()),
        _ => "may not specify a duration larger than 2^32 seconds",
    };
    let error = FieldError::invalid("spec.expirationSeconds", seconds, detail);
    Err(ApiError::invalid("TokenRequest", "authentication.k8s.io", name, &[error]))
}

/// What the body of a request for a token asks for.
pub(super) fn request_of(namespace: &str, name: &str, body: &Value) -> TokenRequest {
    let spec = &body["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let reference = &spec["boundObjectRef"];
    TokenRequest {
        namespace: namespace.to_owned(),
        service_account: name.to_owned(),
        audiences: spec["audiences"].as_array().into_iter().flatten().map(text).collect(),
        expiration_seconds: spec["expirationSeconds"].as_i64().unwrap_or(0),
        bound: reference.is_object().then(|| BoundObject {
            kind: text(&reference["kind"]),
            name: text(&reference["name"]),
            uid: text(&reference["uid"]),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::api::{DeleteOptions, WriteOptions};

    fn cluster() -> Api {
        let api = Api::new(String::new());
        let namespaces = api.target("namespaces", "", "").unwrap();
        let namespace = json!({ "metadata": { "name": "n" } });
        api.create(&namespaces, namespace, &WriteOptions::by("test")).unwrap();
        let pods = api.target("pods", "n", "").unwrap();
        let pod = json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
        api.create(&pods, pod, &WriteOptions::by("test")).unwrap();
        api
    }

    fn request() -> TokenRequest {
        TokenRequest {
            namespace: "n".into(),
            service_account: "default".into(),
            ..TokenRequest::default()
        }
    }

    fn ours() -> Vec<String> {
        vec![ISSUER.to_owned()]
    }

    #[test]
    fn a_token_is_its_service_account() {
        let api = cluster();
        let token = api.create_token(&request()).unwrap().token;
        let (user, audiences) = api.user_of_token(&token, &ours()).unwrap();
        assert_eq!(user.name, "system:serviceaccount:n:default");
        assert_eq!(audiences, ours());
        // Another key, another text, another audience.
        assert!(cluster().user_of_token(&token, &ours()).is_err());
        assert!(api.user_of_token(&token[..token.len() - 4], &ours()).is_err());
        assert!(api.user_of_token(&token, &["vault".to_owned()]).is_err());
        for odd in ["", ".", "a.b", "a.b.c", "..", &token.replace('.', "")] {
            assert!(api.user_of_token(odd, &ours()).is_err(), "{odd}");
        }
        let account = api.target("serviceaccounts", "n", "default").unwrap();
        api.delete(&account, &DeleteOptions::default()).unwrap();
        let gone = api.user_of_token(&token, &ours()).unwrap_err();
        assert_eq!(gone, "service account has been deleted");
    }

    #[test]
    fn a_bound_token_ends_with_its_pod() {
        let api = cluster();
        let bound = |name: &str, uid: &str| {
            Some(BoundObject { kind: "Pod".into(), name: name.into(), uid: uid.into() })
        };
        let token = api.create_token(&TokenRequest { bound: bound("p", ""), ..request() }).unwrap();
        let (user, _) = api.user_of_token(&token.token, &ours()).unwrap();
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
        let missing = api.create_token(&TokenRequest { bound: bound("x", ""), ..request() });
        assert!(missing.unwrap_err().is_not_found());
        let other = api.create_token(&TokenRequest { bound: bound("p", "u"), ..request() });
        assert!(other.unwrap_err().is_conflict());
        let pod = api.target("pods", "n", "p").unwrap();
        api.delete(&pod, &DeleteOptions::default()).unwrap();
        assert!(api.user_of_token(&token.token, &ours()).is_err());
    }

    #[test]
    fn times_are_checked() {
        let api = cluster();
        let short = api.create_token(&TokenRequest { expiration_seconds: 60, ..request() });
        let words = short.unwrap_err().to_string();
        assert!(words.contains("may not specify a duration less than 10 minutes"), "{words}");
        let over =
            json!({ "aud": ours(), "exp": Timestamp::now().as_second(), "kubernetes.io": {} });
        let over = api.signer.sign(&over).unwrap();
        assert_eq!(
            api.user_of_token(&over, &ours()).unwrap_err(),
            "service account token has expired"
        );
    }
}
