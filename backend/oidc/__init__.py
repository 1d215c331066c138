"""The protocol of single sign-on.

The modules need the extra ``oidc``; ``backend.access.single_sign_on`` imports them if it is set.
"""
